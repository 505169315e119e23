//! Views of answers in a chat: MCP Apps (SEP-1865). Only clients that say that they show them see anything of it.

use rmcp::model::{
    CacheScope, ClientCapabilities, Icon, MetaObject, ReadResourceResult, Resource, ResourceContents, Tool as Listed,
};
use serde_json::{Value, json};

use super::page;
use crate::tools::{Recollects, Tool, changes::Changes, diagnose::Diagnose, top_traffic::TopTraffic};

/// The extension, as clients name it.
pub const EXTENSION: &str = "io.modelcontextprotocol/ui";
/// The type of its documents.
const KIND: &str = "text/html;profile=mcp-app";
/// They change with a release only.
const TTL_MS: u64 = 3_600_000;

/// A view of the answers of a tool.
struct View {
    name: &'static str,
    tool: &'static str,
    title: &'static str,
    description: &'static str,
}

const VIEWS: [View; 3] = [
    View {
        name: "live",
        tool: TopTraffic::NAME,
        title: "Live traffic",
        description: "Who uses the bandwidth, as a table, and live as a chart.",
    },
    View {
        name: "diagnose",
        tool: Diagnose::NAME,
        title: "Diagnosis",
        description: "Findings with their evidence and next steps.",
    },
    View {
        name: "changes",
        tool: Changes::NAME,
        title: "Changes",
        description: "What differs between two recorded periods.",
    },
];

fn uri(view: &View) -> String {
    format!("ui://netmon/{}", view.name)
}

/// Whether a client shows such views.
pub fn are_shown(capabilities: Option<&ClientCapabilities>) -> bool {
    let extensions = capabilities.and_then(|capabilities| capabilities.extensions.as_ref());
    let settings = extensions.and_then(|extensions| extensions.get(EXTENSION));
    let kinds = settings.and_then(|settings| settings.get("mimeTypes")).and_then(Value::as_array);
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == KIND))
}

fn meta(value: Value) -> MetaObject {
    let mut meta = MetaObject::new();
    meta.insert("ui".into(), value);
    meta
}

/// Names the view of a tool, if it has one.
pub fn link(tool: Listed) -> Listed {
    match VIEWS.iter().find(|view| view.tool == tool.name) {
        Some(view) => tool.with_meta(meta(json!({"resourceUri": uri(view)}))),
        None => tool,
    }
}

/// The views of the tools that a client may use.
pub fn resources(is_allowed: impl Fn(&str) -> bool) -> Vec<Resource> {
    let resource = |view: &View| {
        let resource = Resource::new(uri(view), view.name).with_title(view.title).with_description(view.description);
        resource.with_mime_type(KIND).with_meta(meta(json!({"prefersBorder": true})))
    };
    VIEWS.iter().filter(|view| is_allowed(view.tool)).map(resource).collect()
}

/// A view; none if there is none with this URI. It holds no data, and asks for no origin.
pub fn read(wanted: &str) -> Option<ReadResourceResult> {
    let view = VIEWS.iter().find(|view| uri(view) == wanted)?;
    let contents = ResourceContents::text(page::app(view.name, view.title), wanted).with_mime_type(KIND);
    let contents = contents.with_meta(meta(json!({"prefersBorder": true})));
    Some(ReadResourceResult::new(vec![contents]).with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Public))
}

/// The server's icon. A tool has none: thirteen of them would take a fifth of the budget of `tools/list`.
pub fn icon() -> Icon {
    let mut src = "data:image/svg+xml,".to_owned();
    for c in page::ICON.trim().chars() {
        match c {
            '<' => src += "%3C",
            '>' => src += "%3E",
            '#' => src += "%23",
            '"' => src += "%22",
            ' ' => src += "%20",
            _ => src.push(c),
        }
    }
    Icon::new(src).with_mime_type(page::SVG).with_sizes(vec!["any".into()])
}
