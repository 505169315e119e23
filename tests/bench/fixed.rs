//! A minimal server on rmcp: it gives one answer to any request, without tables, log, checks or limits. It may ask a daemon
//! first, and ignore its answer: the least that a gateway does.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
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
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixStream},
};

#[derive(Clone)]
struct Fixed {
    result: CallToolResult,
    daemon: Option<Arc<Daemon>>,
}

/// A daemon that is asked the same at each call, over connections that are used again.
struct Daemon {
    socket: String,
    question: String,
    idle: Mutex<Vec<BufReader<UnixStream>>>,
}

impl Daemon {
    async fn ask(&self) {
        let idle = self.idle.lock().unwrap().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => BufReader::new(UnixStream::connect(&self.socket).await.unwrap()),
        };
        connection.write_all(self.question.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_line(&mut answer).await.unwrap();
        self.idle.lock().unwrap().push(connection);
    }
}

impl ServerHandler for Fixed {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if let Some(daemon) = &self.daemon {
            daemon.ask().await;
        }
        Ok(self.result.clone().into())
    }
}

/// Serves the answer in the file of the first argument: on the port of the last argument, or over standard input and output. Between
/// them may be the socket of a daemon, and the question to it. It ends with its input, or is killed.
pub fn serve(arguments: &[String]) {
    let (answer, daemon, port) = match arguments {
        [answer] => (answer, None, None),
        [answer, port] => (answer, None, Some(port)),
        [answer, socket, question] => (answer, Some((socket, question)), None),
        [answer, socket, question, port] => (answer, Some((socket, question)), Some(port)),
        _ => panic!("{arguments:?}"),
    };
    let answer: Value = serde_json::from_slice(&std::fs::read(answer).unwrap()).unwrap();
    let daemon = daemon.map(|(socket, question)| {
        Arc::new(Daemon { socket: socket.clone(), question: format!("{question}\n"), idle: Mutex::default() })
    });
    let fixed = Fixed { result: CallToolResult::structured(answer), daemon };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match port {
            Some(port) => over_http(fixed, port.parse().unwrap()).await.unwrap(),
            None => over_pipes(fixed).await,
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
