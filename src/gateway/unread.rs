//! Errors of the protocol, for requests other than tool calls, and for lines that are not messages.

use std::io;

use rmcp::{
    ErrorData,
    model::{CallToolRequestParams, CompleteRequestParams, CustomRequest, ErrorCode, GetPromptRequestParams},
};
use serde::Deserialize;
use serde_json::error::Category;

use super::Failure;
use crate::{limits, untrusted};

/// The error for what rmcp could not read as any request: the method is unknown, or its parameters are wrong.
pub fn unread(request: CustomRequest) -> ErrorData {
    let params = request.params.unwrap_or_default();
    let wrong = match request.method.as_str() {
        "tools/call" => CallToolRequestParams::deserialize(params).err(),
        "prompts/get" => GetPromptRequestParams::deserialize(params).err(),
        "completion/complete" => CompleteRequestParams::deserialize(params).err(),
        _ => None,
    };
    match wrong {
        Some(e) => ErrorData::invalid_params(untrusted::clean(&format!("{}: {e}", request.method)), None),
        None => ErrorData::new(ErrorCode::METHOD_NOT_FOUND, untrusted::clean(&request.method), None),
    }
}

/// The error for a line that is not a message.
pub fn not_a_message(e: &serde_json::Error) -> ErrorData {
    match e.classify() {
        Category::Syntax | Category::Eof => ErrorData::parse_error(untrusted::clean(&format!("not JSON: {e}")), None),
        Category::Data | Category::Io => ErrorData::invalid_request("not a JSON-RPC message", None),
    }
}

/// The error for a line that is not UTF-8.
pub fn not_text(e: &io::Error) -> ErrorData {
    ErrorData::parse_error(format!("not JSON: {e}"), None)
}

/// The error for a line that was not read to its end.
pub fn too_long() -> ErrorData {
    ErrorData::invalid_request(format!("the line is longer than {} bytes", limits::LINE_BYTES), None)
}

/// Why a resource was not read.
pub fn refused(e: Failure) -> ErrorData {
    match e {
        Failure::Busy(_) | Failure::Forbidden(_) => ErrorData::invalid_request(e.to_string(), None),
        _ => ErrorData::internal_error(e.to_string(), None),
    }
}
