//! The MCP server: the tools, over any transport.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::http::request::Parts;
use futures::FutureExt;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        ArgumentInfo, CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams,
        CompleteResult, CompletionInfo, ContentBlock, CustomRequest, CustomResult, GetPromptRequestParams,
        GetPromptResponse, GetSkillRequestParams, GetSkillResult, JsonObject, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListSkillsResult, ListToolsResult, PaginatedRequestParams,
        ProgressNotificationParam, ReadResourceRequestParams, ReadResourceResponse, ServerConfig,
        SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
    },
    service::{RequestContext, SubscriptionContext},
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Continuation, Failure, Gateway, Place, apps, audit,
    hosts::{Host, look},
    http::callers::{Room, Sender},
    offer, prompts,
    resources::{self, Subscriber},
    skills,
    unread::{refused, unread},
};
use crate::{limits, sync::lock, tools::Answer, untrusted, wire};

/// One client's MCP session.
#[derive(Clone)]
pub struct Server {
    gateway: Arc<Gateway>,
    /// Cancelled when this server ends, and open windows with it.
    ended: CancellationToken,
    last: Arc<Continuation>,
    /// Ends the notifications of a session that has subscribed.
    subscribed: Arc<Mutex<Option<DropGuard>>>,
}

impl Server {
    pub fn new(gateway: Arc<Gateway>, ended: CancellationToken) -> Self {
        Server { gateway, ended, last: Arc::default(), subscribed: Arc::default() }
    }

    /// Answers a call, and leaves a line about it in the log.
    async fn answer(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<Answer, Failure> {
        let (begun, arguments) = (Instant::now(), request.arguments.unwrap_or_default());
        let sender = sender(context);
        let shown = audit::Arguments::of(&arguments);
        let result = self.call(&request.name, arguments, sender, context).await;
        let entry = audit::Entry { tool: &request.name, arguments: shown, sender, took: begun.elapsed() };
        entry.write(&result, &self.gateway.metrics);
        result
    }

    /// Makes a call when its sender has room for one, sends progress, and ends it when the client cancels or
    /// disconnects.
    async fn call(
        &self,
        name: &str,
        arguments: JsonObject,
        sender: Option<&Sender>,
        context: &RequestContext<RoleServer>,
    ) -> Result<Answer, Failure> {
        if name == look::TOOL && !self.gateway.hosts().is_empty() {
            look::check(&arguments)?;
            let _room = self.room(sender, name, None, false).await?;
            return self.look(sender, context).await;
        }
        let mut call = self.gateway.prepare(name, arguments)?;
        let works = call.duration.is_zero() && call.host().is_none();
        let _room = self.room(sender, name, Some(call.host()), works).await?;
        self.last.resume(&mut call);
        let (begun, total, question) = (Instant::now(), call.duration, call.question);
        let opened = Arc::clone(&call.opened);
        // A call without a window is answered even after the client has closed its input (a pipe).
        let ended =
            async { if !total.is_zero() { self.ended.cancelled().await } else { std::future::pending().await } };
        let mut ended = std::pin::pin!(ended);
        let mut work = std::pin::pin!(self.gateway.make(call, sender));
        // A timer is never due at once, but up to a millisecond later: none is waited for before the work has begun.
        let mut tick = tokio::time::interval_at((begun + limits::PROGRESS_EVERY).into(), limits::PROGRESS_EVERY);
        let asked_for = context.meta.get_progress_token().is_some();
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut work => break answer?,
                () = context.ct.cancelled() => return Err(wire::Error::Cancelled.into()),
                () = &mut ended => return Err(Failure::Ending),
                _ = tick.tick(), if asked_for => self.progress(context, opened.get(), total).await,
            }
        };
        self.last.note(question, &answer);
        Ok(answer)
    }

    /// Lists the hosts that the sender may ask, and sends progress while it waits for them.
    async fn look(&self, sender: Option<&Sender>, context: &RequestContext<RoleServer>) -> Result<Answer, Failure> {
        let allowed =
            |host: &&Arc<Host>| sender.is_none_or(|sender| sender.scope.allows_host(Some(host.named.name.as_str())));
        let hosts: Vec<_> = self.gateway.hosts().iter().filter(allowed).cloned().collect();
        let (begun, total) = (Instant::now(), limits::HOST_CONNECT.as_secs_f64());
        let mut work = std::pin::pin!(look::states(&hosts));
        let mut tick = tokio::time::interval_at((begun + limits::PROGRESS_EVERY).into(), limits::PROGRESS_EVERY);
        loop {
            tokio::select! {
                biased;
                answer = &mut work => return Ok(answer),
                () = context.ct.cancelled() => return Err(wire::Error::Cancelled.into()),
                () = self.ended.cancelled() => return Err(Failure::Ending),
                _ = tick.tick() => {
                    let seconds = begun.elapsed().as_secs_f64();
                    notify(context, seconds, total.max(seconds), look::progress(&hosts)).await;
                }
            }
        }
    }

    /// Room for a call, if its sender may make it; `host` is the one that it asks, if any (and which may be this one), and
    /// `works` says that it does not watch through a window.
    async fn room(
        &self,
        sender: Option<&Sender>,
        tool: &str,
        host: Option<Option<&str>>,
        works: bool,
    ) -> Result<(Option<Room>, Option<Place>), Failure> {
        let Some(Sender { caller, scope, .. }) = sender else { return Ok((None, Some(self.gateway.places.take(0)?))) };
        let who = untrusted::clean(&caller.identity.to_string());
        if !scope.allows_tool(tool) {
            let tools = scope.tools.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
            return Err(Failure::Forbidden(format!("{who} may not use {tool}; its credentials allow: {tools}")));
        }
        if host.is_some_and(|host| !scope.allows_host(host)) {
            let hosts = scope.hosts.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
            return Err(Failure::Forbidden(format!(
                "{who} may not use this host; its credentials allow: {hosts} (local is the host of this server)"
            )));
        }
        Ok((Some(caller.call(&self.gateway.places, works).await?), None))
    }

    /// The values that an argument of a prompt may have: a call, if the daemon has to be asked.
    async fn completed(&self, argument: &ArgumentInfo, sender: Option<&Sender>) -> Result<CompletionInfo, Failure> {
        let Some(tool) = prompts::asks(argument) else { return Ok(prompts::complete(argument, &Value::Null)) };
        let _room = self.room(sender, tool, Some(None), true).await?;
        let answer = self.gateway.make(self.gateway.prepare(tool, prompts::question())?, sender).await?;
        Ok(prompts::complete(argument, &answer.structured))
    }

    /// Whoever may call the tool may follow the resource.
    fn may_follow(&self, context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
        match sender(context) {
            Some(sender) if !sender.scope.allows_tool(resources::TOOL) => Err(ErrorData::invalid_request(
                format!("these credentials do not allow {}, and so not {}", resources::TOOL, resources::INCIDENTS),
                None,
            )),
            _ => Ok(()),
        }
    }

    fn listed(&self) -> &[Tool] {
        self.gateway.tools.get_or_init(|| offer::tools(self.gateway.hosts()))
    }

    async fn progress(&self, context: &RequestContext<RoleServer>, opened: Option<&Instant>, total: Duration) {
        let seconds = opened.map_or(Duration::ZERO, |opened| opened.elapsed().min(total)).as_secs_f64();
        let total = total.as_secs_f64();
        let message = match opened {
            None => "loading eBPF programs".to_owned(),
            Some(_) => format!("measuring: {seconds:.1} of {total:.1} s"),
        };
        notify(context, seconds, total, message).await;
    }
}

/// Tells a client that wants to hear of it how far its call is.
async fn notify(context: &RequestContext<RoleServer>, seconds: f64, total: f64, message: String) {
    let Some(token) = context.meta.get_progress_token() else { return };
    let progress = ProgressNotificationParam::new(token, seconds).with_total(total).with_message(message);
    let _ = context.peer.notify_progress(progress).await; // a client that is gone is noticed elsewhere
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        // rmcp asks at every call.
        self.gateway.about.get_or_init(|| offer::about(self.gateway.hosts())).clone()
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        // The list changes with a release only, and with the credentials where they narrow it.
        let scope = sender(&context).map(|sender| &sender.scope).filter(|scope| !scope.is_full());
        let allowed = |tool: &&Tool| scope.is_none_or(|scope| scope.allows_tool(&tool.name));
        let shows_apps = apps::are_shown(context.client_capabilities().as_ref());
        let tools = self.listed().iter().filter(allowed).cloned();
        let tools = tools.map(|tool| if shows_apps { apps::link(tool) } else { tool }).collect();
        let cache = if scope.is_none() && !shows_apps { CacheScope::Public } else { CacheScope::Private };
        Ok(ListToolsResult::with_all_items(tools).with_ttl_ms(3_600_000).with_cache_scope(cache))
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(prompts::list())
            .with_ttl_ms(3_600_000)
            .with_cache_scope(CacheScope::Public))
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let capabilities = context.client_capabilities();
        let may_use = |tool: &str| sender(&context).is_none_or(|sender| sender.scope.allows_tool(tool));
        Ok(resources::list(capabilities.as_ref(), may_use))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if let Some(file) = resources::file(&request.uri) {
            return Ok(file.into());
        }
        resources::check(&request.uri)?;
        let (begun, sender) = (Instant::now(), sender(&context));
        let read = async {
            let _room = self.room(sender, resources::TOOL, Some(None), true).await?;
            self.gateway.make(self.gateway.prepare(resources::TOOL, JsonObject::new())?, sender).await
        };
        let result = read.await;
        let arguments = audit::Arguments::of(&JsonObject::new());
        let entry = audit::Entry { tool: resources::TOOL, arguments, sender, took: begun.elapsed() };
        entry.write(&result, &self.gateway.metrics);
        result.map(|answer| resources::contents(&answer).into()).map_err(refused)
    }

    async fn list_skills(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListSkillsResult, ErrorData> {
        Ok(skills::list())
    }

    async fn get_skill(
        &self,
        request: GetSkillRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetSkillResult, ErrorData> {
        skills::get(&request.uri)
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(resources::accepted(requested))
    }

    /// Notifies until the client ends it, or this server ends.
    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.may_follow(context.request_context())?;
        let subscriber = Subscriber::Sink(context.sink().clone());
        tokio::select! {
            () = subscriber.follow(self.gateway.past.follow()) => {}
            () = context.cancelled() => {}
            () = self.ended.cancelled() => {}
        }
        Ok(())
    }

    /// The same before 2026-07-28: until the session ends.
    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        resources::check(&request.uri)?;
        self.may_follow(&context)?;
        let (ended, state) = (self.ended.child_token(), self.gateway.past.follow());
        *lock(&self.subscribed) = Some(ended.clone().drop_guard());
        let subscriber = Subscriber::Session(context.peer);
        tokio::spawn(async move { ended.run_until_cancelled(subscriber.follow(state)).await });
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        resources::check(&request.uri)?;
        lock(&self.subscribed).take();
        Ok(())
    }

    /// There are none. Some clients ask without looking at the capabilities, and take an error for a fault.
    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::default())
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        prompts::get(&request).map(Into::into)
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let (begun, sender, argument) = (Instant::now(), sender(&context), &request.argument);
        let result = self.completed(argument, sender).await;
        let shown = json!({"argument": argument.name, "value": argument.value});
        let arguments = audit::Arguments::of(shown.as_object().unwrap_or(&Default::default()));
        let entry = audit::Entry { tool: audit::COMPLETION, arguments, sender, took: begun.elapsed() };
        entry.write_outcome(result.as_ref().map(|_| ()), None, &self.gateway.metrics);
        match result {
            Ok(info) => Ok(CompleteResult::new(info)),
            Err(e @ (Failure::Busy(_) | Failure::Forbidden(_))) => Err(refused(e)),
            Err(_) => Ok(CompleteResult::default()), // without a daemon there is nothing to offer
        }
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.listed().iter().find(|tool| tool.name == name).cloned()
    }

    /// What rmcp could not read as any request: a method that is not here, or one that is, with parameters that are not its.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        Err(unread(request))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // rmcp sends no response at all for a handler that panics.
        let result = AssertUnwindSafe(self.answer(request, &context)).catch_unwind().await;
        let failed = |text: String| Ok(CallToolResult::error(vec![ContentBlock::text(text)]).into());
        match result {
            Ok(Ok(answer)) => Ok(success(answer).into()),
            Ok(Err(e @ Failure::UnknownTool(_))) => Err(ErrorData::invalid_params(e.to_string(), None)),
            Ok(Err(e)) => failed(e.to_string()),
            Err(_) => failed(
                "internal error in netmon-mcp: see its log, and please report it. netmon-mcp keeps running".into(),
            ),
        }
    }
}

/// Who sent a request, over HTTP.
fn sender(context: &RequestContext<RoleServer>) -> Option<&Sender> {
    context.extensions.get::<Parts>().and_then(|parts| parts.extensions.get::<Sender>())
}

fn success(answer: Answer) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(answer.text)]);
    result.structured_content = Some(answer.structured);
    result
}
