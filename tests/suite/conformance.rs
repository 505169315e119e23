//! The official conformance suite: against netmon-mcp, and against a fixture server on the same HTTP stack with the
//! tools, prompts and resources that the suite requests by name (`tests/clients/fixture.json`).

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock, mpsc::channel},
    thread,
};

use aws_lc_rs::hmac;
use netmon_mcp::{
    gateway::{
        Gateway,
        daemon::Daemon as Asked,
        http::{Http, Serving, place::Listen},
        settings,
    },
    sandbox::{Reach, Role},
};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::*,
    service::{RequestContext, SubscriptionContext},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{installed, *},
    http_harness::*,
};

static FIXTURE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../clients/fixture.json")).unwrap());

/// A part of the fixture as a type of rmcp.
fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

/// A result that requires nothing more from the client.
fn complete<T: DeserializeOwned>(mut value: Value) -> T {
    value["resultType"] = json!("complete");
    typed(value)
}

/// The fixture's entry of a name, with `{argument}` replaced in its strings.
fn named(kind: &str, name: &str, arguments: &Map<String, Value>) -> Result<Value, ErrorData> {
    let unknown = || ErrorData::invalid_params("there is none of that name", Some(json!({"uri": name})));
    let mut found = FIXTURE[kind].get(name).cloned().ok_or_else(unknown)?;
    fill(&mut found, arguments);
    Ok(found)
}

fn fill(value: &mut Value, arguments: &Map<String, Value>) {
    match value {
        Value::String(text) => {
            for (name, argument) in arguments {
                *text = text.replace(&format!("{{{name}}}"), argument.as_str().unwrap_or_default());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, arguments)),
        Value::Object(object) => object.values_mut().for_each(|value| fill(value, arguments)),
        _ => {}
    }
}

/// The server of the fixture.
#[derive(Clone)]
struct Fixture {
    seal: Arc<hmac::Key>,
    /// The changed list.
    changes: broadcast::Sender<String>,
}

impl Fixture {
    fn new() -> Self {
        Fixture { seal: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[7; 32])), changes: broadcast::channel(8).0 }
    }

    /// A round of questions, as a state that a client cannot change.
    fn sealed(&self, round: usize) -> String {
        let tag = hmac::sign(&self.seal, &round.to_be_bytes());
        tag.as_ref().iter().fold(format!("{round}."), |text, byte| text + &format!("{byte:02x}"))
    }

    fn opened(&self, state: &str) -> Result<usize, ErrorData> {
        let round = state.split('.').next().and_then(|round| round.parse().ok());
        let round = round.filter(|round| self.sealed(*round) == state);
        round.ok_or_else(|| ErrorData::invalid_params("the state was changed on its way", None))
    }

    /// The open questions of the round that the client can answer, if any.
    fn question(
        &self,
        spec: &Value,
        state: Option<&str>,
        responses: Option<&InputResponses>,
        context: &RequestContext<RoleServer>,
    ) -> Result<Option<InputRequiredResult>, ErrorData> {
        let Some(rounds) = spec["rounds"].as_array() else { return Ok(None) };
        let declared = json!(context.client_capabilities());
        let able = |request: &Value| match request["method"].as_str() {
            Some("sampling/createMessage") => declared.get("sampling").is_some(),
            Some("elicitation/create") => declared.get("elicitation").is_some(),
            _ => declared.get("roots").is_some(),
        };
        let asked = |round: usize| -> Map<String, Value> {
            rounds[round].as_object().unwrap().clone().into_iter().filter(|(_, request)| able(request)).collect()
        };
        let mut round = state.map_or(Ok(0), |state| self.opened(state))?;
        let answered = |name: &String| responses.is_some_and(|all| all.get(name).is_some_and(Value::is_object));
        if asked(round).keys().all(answered) {
            round += 1;
        }
        if round == rounds.len() {
            return Ok(None);
        }
        let state = (spec["sealed"] == true).then(|| self.sealed(round));
        Ok(Some(InputRequiredResult::new(Some(typed(asked(round).into())), state)))
    }

    /// The side effects of a tool.
    async fn act(&self, spec: &Value, context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
        let tell = |method: &str, params: Value| {
            context.peer.send_notification(typed(json!({"method": method, "params": params})))
        };
        let told = |e: rmcp::ServiceError| ErrorData::internal_error(e.to_string(), None);
        for done in spec["progress"].as_array().into_iter().flatten() {
            if let Some(token) = context.meta.get_progress_token() {
                let params = json!({"progressToken": token, "progress": done, "total": 100});
                tell("notifications/progress", params).await.map_err(told)?;
            }
        }
        // Since 2026-07-28 a request subscribes to notifications.
        let quiet = context.meta.protocol_version().is_some() && context.meta.log_level().is_none();
        for line in spec["log"].as_array().into_iter().flatten().filter(|_| !quiet) {
            tell("notifications/message", json!({"level": "info", "data": line})).await.map_err(told)?;
        }
        if let Some(list) = spec["changed"].as_str() {
            let _ = self.changes.send(list.into()); // there may be no subscriber
        }
        if spec.get("asks").is_some() {
            context.peer.send_request(typed(spec["asks"].clone())).await.map_err(told)?;
        }
        Ok(())
    }
}

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        let capabilities = json!({
            "tools": {"listChanged": true}, "prompts": {"listChanged": true}, "completions": {}, "logging": {},
            "resources": {"subscribe": true},
        });
        ServerConfig::new(typed(capabilities)).with_server_info(Implementation::new("fixture", "0"))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let names = FIXTURE["tools"].as_object().unwrap().keys();
        Ok(ListToolsResult::with_all_items(names.filter_map(|name| self.get_tool(name)).collect()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let schema = FIXTURE["tools"].get(name)?.get("schema").cloned().unwrap_or(json!({"type": "object"}));
        Some(typed(json!({"name": name, "description": "One of the suite's own.", "inputSchema": schema})))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let spec = named("tools", &request.name, &request.arguments.unwrap_or_default())?;
        if let Some(needed) = spec.get("needs") {
            return Err(ErrorData::missing_required_client_capability(typed(needed.clone())));
        }
        let state = request.request_state.as_deref();
        if let Some(question) = self.question(&spec, state, request.input_responses.as_ref(), &context)? {
            return Ok(question.into());
        }
        self.act(&spec, &context).await?;
        let done = || json!({"content": [{"type": "text", "text": "Done."}]});
        Ok(complete::<CallToolResult>(spec.get("result").cloned().unwrap_or_else(done)).into())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let prompt = |(name, spec): (&String, &Value)| {
            let names = spec["arguments"].as_array().into_iter().flatten();
            let arguments: Vec<_> = names.map(|name| json!({"name": name, "required": true})).collect();
            typed(json!({"name": name, "description": "One of the suite's own.", "arguments": arguments}))
        };
        let prompts = FIXTURE["prompts"].as_object().unwrap().iter().map(prompt).collect();
        Ok(ListPromptsResult::with_all_items(prompts))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let spec = named("prompts", &request.name, &request.arguments.unwrap_or_default())?;
        let state = request.request_state.as_deref();
        if let Some(question) = self.question(&spec, state, request.input_responses.as_ref(), &context)? {
            return Ok(question.into());
        }
        Ok(complete::<GetPromptResult>(json!({"messages": spec["messages"]})).into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resource =
            |(uri, spec): (&String, &Value)| typed(json!({"uri": uri, "name": uri, "mimeType": spec["mimeType"]}));
        let resources = FIXTURE["resources"].as_object().unwrap().iter().map(resource).collect();
        Ok(ListResourcesResult::with_all_items(resources))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let templates = FIXTURE["templates"].as_object().unwrap().keys();
        let template = |uri: &String| typed(json!({"uriTemplate": uri, "name": uri}));
        Ok(ListResourceTemplatesResult::with_all_items(templates.map(template).collect()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let id = request.uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
        let mut content = match id {
            Some(id) => named("templates", "test://template/{id}/data", &Map::from_iter([("id".into(), id.into())]))?,
            None => named("resources", &request.uri, &Map::new())?,
        };
        content["uri"] = request.uri.into();
        Ok(complete::<ReadResourceResult>(json!({"contents": [content]})).into())
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        Ok(complete(json!({"completion": {"values": ["value"]}})))
    }

    #[allow(deprecated)] // both eras
    async fn set_level(&self, _: SetLevelRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    #[allow(deprecated)]
    async fn subscribe(&self, _: SubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    #[allow(deprecated)]
    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.changes.subscribe();
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                change = changes.recv() => {
                    let Ok(list) = change else { return Ok(()) };
                    let notification = typed(json!({"method": format!("notifications/{list}/list_changed")}));
                    let _ = context.sink().send(notification).await; // the client need not have requested it
                }
            }
        }
    }
}

/// Serves the fixture in this process until the returned value is dropped.
fn serve_fixture() -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let (tell, address) = channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let settings = settings::Http {
                listen: vec!["127.0.0.1:0".parse().unwrap()],
                insecure_no_auth: Some(true),
                ..Default::default()
            };
            let nobody = Asked::new("/nonexistent/netmond.sock".into(), Role::Gateway, Reach::default());
            let gateway = Arc::new(Gateway::new(nobody, None, Vec::new()));
            let (http, listeners) = Http::open(&settings, gateway).unwrap();
            let Listen::Tcp(place) = listeners[0].0 else { panic!("not TCP") };
            let fixture = Fixture::new();
            let serving = Serving::start(http, listeners, move || fixture.clone()).unwrap();
            tell.send(place).unwrap();
            let _ = stopped.await;
            serving.end(&CancellationToken::new()).await;
        });
    });
    (address.recv().unwrap(), stop)
}

/// Runs the suite, which fails on unexpected failures and on unexpected successes.
fn conforms(address: SocketAddr, requirements: &str, expected_failures: &str) {
    let folder = tempfile::TempDir::new().unwrap();
    let mut command = installed::program("@modelcontextprotocol/conformance/dist/index.js");
    command.args(["server", "--url", &format!("http://{address}/mcp"), "--requirements", requirements]);
    command.arg("--expected-failures").arg(installed::driver(expected_failures)).arg("-o").arg(folder.path());
    installed::succeeds(command);
}

#[test]
fn netmon_mcp_passes_the_conformance_suite() {
    let daemon = Daemon::light();
    let server = Server::start(&daemon.socket, &[]);
    for requirements in ["2025-11-25", "2026-07-28"] {
        conforms(server.address, requirements, &format!("conformance-{requirements}.yml"));
    }
}

#[test]
fn fixture_server_passes_conformance_on_the_http_stack() {
    let (address, _serving) = serve_fixture();
    for requirements in ["2025-11-25", "2026-07-28"] {
        conforms(address, requirements, "conformance-fixture.yml");
    }
}
