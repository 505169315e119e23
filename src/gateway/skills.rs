//! Skills (SEP-2640): troubleshooting guides that a client loads when it needs one. The prompts and the package have the same
//! files.

use rmcp::{
    ErrorData,
    model::{
        CacheScope, ClientCapabilities, GetSkillResult, ListSkillsResult, ReadResourceResult, Resource,
        ResourceContents, SKILLS_EXTENSION_ID, Skill, SkillFrontmatter, SkillResource, SkillResources,
    },
};
use serde_json::json;

use crate::untrusted;

const MARKDOWN: &str = "text/markdown";
/// They change with a release only.
const TTL_MS: u64 = 3_600_000;

/// A guide.
#[derive(Debug)]
pub struct Guide {
    pub name: &'static str,
    pub description: &'static str,
    /// Without the front matter.
    pub body: &'static str,
    file: &'static str,
}

const FILES: [&str; 6] = [
    include_str!("../../docs/skills/diagnose-network/SKILL.md"),
    include_str!("../../docs/skills/slow-connection/SKILL.md"),
    include_str!("../../docs/skills/vanished-packets/SKILL.md"),
    include_str!("../../docs/skills/dns-trouble/SKILL.md"),
    include_str!("../../docs/skills/bandwidth-use/SKILL.md"),
    include_str!("../../docs/skills/compare-deploy/SKILL.md"),
];

/// Every guide.
pub fn guides() -> impl Iterator<Item = Guide> {
    FILES.into_iter().filter_map(parse)
}

/// The steps of a guide.
pub fn steps(name: &str) -> &'static str {
    guides().find(|guide| guide.name == name).map_or("", |guide| guide.body)
}

fn parse(file: &'static str) -> Option<Guide> {
    let (front, body) = file.strip_prefix("---\n")?.split_once("\n---\n")?;
    let field = |name: &str| front.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(Guide { name: field("name")?, description: field("description")?, body: body.trim(), file })
}

fn uri(guide: &Guide) -> String {
    format!("skill://netmon/{}/SKILL.md", guide.name)
}

fn skill(guide: &Guide) -> Skill {
    let files = vec![SkillResource::from_bytes(uri(guide), guide.file.as_bytes())];
    Skill::new(uri(guide), SkillFrontmatter::new(guide.name, guide.description), SkillResources::Files(files))
}

/// Whether a client has said that it knows skills.
pub fn are_known(capabilities: Option<&ClientCapabilities>) -> bool {
    let extensions = capabilities.and_then(|capabilities| capabilities.extensions.as_ref());
    extensions.is_some_and(|extensions| extensions.contains_key(SKILLS_EXTENSION_ID))
}

pub fn list() -> ListSkillsResult {
    let skills = guides().map(|guide| skill(&guide)).collect();
    ListSkillsResult::with_all_items(skills).with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Public)
}

pub fn get(wanted: &str) -> Result<GetSkillResult, ErrorData> {
    let found = guides().find(|guide| uri(guide) == wanted).map(|guide| GetSkillResult::new(skill(&guide)));
    let found = found.map(|result| result.with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Public));
    found.ok_or_else(|| {
        let wanted = untrusted::clean(wanted);
        ErrorData::invalid_params(format!("no skill has the URI `{wanted}`"), Some(json!({"uri": wanted})))
    })
}

/// Their files, as resources.
pub fn resources() -> Vec<Resource> {
    let resource = |guide: Guide| {
        let size = guide.file.len() as u64;
        let resource = Resource::new(uri(&guide), guide.name).with_description(guide.description);
        resource.with_mime_type(MARKDOWN).with_size(size)
    };
    guides().map(resource).collect()
}

/// A file; none if there is none with this URI.
pub fn read(wanted: &str) -> Option<ReadResourceResult> {
    let guide = guides().find(|guide| uri(guide) == wanted)?;
    let contents = ResourceContents::text(guide.file, wanted).with_mime_type(MARKDOWN);
    Some(ReadResourceResult::new(vec![contents]).with_ttl_ms(TTL_MS).with_cache_scope(CacheScope::Public))
}

#[cfg(test)]
mod tests {
    use rmcp::model::validate_skills;

    use super::*;
    use crate::tools::QUESTIONS;

    #[test]
    fn every_guide_is_a_valid_skill() {
        assert_eq!(guides().count(), FILES.len());
        validate_skills(&list().skills).unwrap();
        for guide in guides() {
            assert!(guide.description.len() <= 1_024 && !guide.description.contains(": "), "{guide:?}");
            assert!(read(&uri(&guide)).is_some() && get(&uri(&guide)).is_ok());
        }
        assert!(get("skill://netmon/other/SKILL.md").unwrap_err().message.contains("other"));
    }

    /// A word in code style with an underscore, or the name of a tool, is one that exists.
    #[test]
    fn guides_name_existing_tools() {
        for guide in guides() {
            let named = guide.body.split("Call `").skip(1).filter_map(|rest| rest.split('`').next());
            let named: Vec<_> = named.collect();
            assert!(!named.is_empty(), "{}", guide.name);
            for name in named {
                assert!(QUESTIONS.iter().any(|question| question.name == name), "{}: {name}", guide.name);
            }
        }
    }
}
