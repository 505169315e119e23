//! A minimal server on rmcp: it gives one answer to any request, without daemon, tables, log, checks or limits.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{CallToolRequestParams, CallToolResponse, CallToolResult, ServerCapabilities, ServerConfig},
    service::RequestContext,
    transport::{
        StreamableHttpServerConfig, StreamableHttpService, async_rw::AsyncRwTransport, stdio_pipes,
        streamable_http_server::session::local::LocalSessionManager,
    },
};
use serde_json::Value;
use tokio::net::TcpListener;

#[derive(Clone)]
struct Fixed(CallToolResult);

impl ServerHandler for Fixed {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        Ok(self.0.clone().into())
    }
}

/// Serves the answer in the file of the second argument: on the port of the third argument, or over standard input and
/// output. It ends with its input, or is killed.
pub fn serve() {
    let mut arguments = std::env::args().skip(2);
    let answer: Value = serde_json::from_slice(&std::fs::read(arguments.next().unwrap()).unwrap()).unwrap();
    let result = CallToolResult::structured(answer);
    let port = arguments.next().map(|port| port.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match port {
            Some(port) => over_http(Fixed(result), port).await.unwrap(),
            None => over_pipes(Fixed(result)).await,
        }
    });
}

async fn over_pipes(fixed: Fixed) {
    let (stdin, stdout) = stdio_pipes();
    let running = fixed.serve(AsyncRwTransport::new_server(stdin, stdout)).await.unwrap();
    let _ = running.waiting().await;
}

async fn over_http(fixed: Fixed, port: u16) -> io::Result<()> {
    let config = StreamableHttpServerConfig::default().with_json_response(true).with_legacy_session_mode(true);
    let sessions = Arc::new(LocalSessionManager::default());
    let service = StreamableHttpService::new(move || Ok(fixed.clone()), sessions, config);
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}
