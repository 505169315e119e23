//! Resources: the incidents of the recording, and a notification whenever one begins or ends.

use rmcp::{
    ErrorData, Peer, RoleServer,
    model::{
        CacheScope, ClientCapabilities, ListResourcesResult, ReadResourceResult, Resource, ResourceContents,
        SubscriptionFilter,
    },
    service::SubscriptionSink,
};
use serde_json::json;
use tokio::sync::watch;

use super::{apps, past::Revision, skills};
use crate::{
    tools::{Answer, Recollects, incidents::Incidents},
    untrusted,
};

/// The incidents of the last 24 hours, as the tool `incidents` lists them.
pub const INCIDENTS: &str = "netmon://incidents";
/// The tool that answers for it: whoever may call the one may read the other.
pub const TOOL: &str = Incidents::NAME;

const JSON: &str = "application/json";
/// A recorded window is at least a second long.
const TTL_MS: u64 = 1_000;

/// The resources of a client that may use these tools: incidents, and files that its extensions use.
pub fn list(client: Option<&ClientCapabilities>, may_use: impl Fn(&str) -> bool) -> ListResourcesResult {
    let incidents = Resource::new(INCIDENTS, TOOL)
        .with_title("Incidents")
        .with_description("Findings of diagnose in the last 24 hours, from when to when, from the recording.")
        .with_mime_type(JSON);
    let mut resources: Vec<_> = may_use(TOOL).then_some(incidents).into_iter().collect();
    if apps::are_shown(client) {
        resources.extend(apps::resources(may_use));
    }
    if skills::are_known(client) {
        resources.extend(skills::resources());
    }
    ListResourcesResult::with_all_items(resources).with_ttl_ms(3_600_000).with_cache_scope(CacheScope::Private)
}

/// A file of an extension, if it has this URI. Everybody may read it: it is a part of this program.
pub fn file(uri: &str) -> Option<ReadResourceResult> {
    apps::read(uri).or_else(|| skills::read(uri))
}

/// Refuses every URI but those that are listed.
pub fn check(uri: &str) -> Result<(), ErrorData> {
    if uri == INCIDENTS {
        return Ok(());
    }
    let text = format!("no resource has the URI `{}`; there is {INCIDENTS}", untrusted::clean(uri));
    Err(ErrorData::resource_not_found(text, Some(json!({"uri": untrusted::clean(uri)}))))
}

/// The contents.
pub fn contents(answer: &Answer) -> ReadResourceResult {
    let text = answer.structured.to_string();
    ReadResourceResult::new(vec![ResourceContents::text(text, INCIDENTS).with_mime_type(JSON)])
        .with_ttl_ms(TTL_MS)
        .with_cache_scope(CacheScope::Private)
}

/// Of what a client wants to follow, what it can.
pub fn accepted(requested: &SubscriptionFilter) -> SubscriptionFilter {
    let mut accepted = SubscriptionFilter::default();
    let known = requested.resource_subscriptions.iter().flatten().filter(|uri| check(uri).is_ok());
    accepted.resource_subscriptions = Some(known.cloned().collect());
    accepted
}

/// Whom to notify.
pub enum Subscriber {
    /// Since 2026-07-28: a request that lasts.
    Sink(SubscriptionSink),
    /// Before: a session.
    Session(Peer<RoleServer>),
}

impl Subscriber {
    /// Notifies of every change; ends when the client cannot be reached any more.
    pub async fn follow(self, mut state: watch::Receiver<Option<Revision>>) {
        let mut last = *state.borrow_and_update();
        while state.changed().await.is_ok() {
            let now = *state.borrow_and_update();
            if last.is_some() && now.is_some() && last != now && !self.notify().await {
                return;
            }
            last = now.or(last);
        }
    }

    async fn notify(&self) -> bool {
        match self {
            Subscriber::Sink(sink) => sink.notify_resource_updated(INCIDENTS).await.is_ok(),
            Subscriber::Session(peer) => peer
                .notify_resource_updated(rmcp::model::ResourceUpdatedNotificationParam::new(INCIDENTS))
                .await
                .is_ok(),
        }
    }
}
