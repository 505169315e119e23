//! The documentation: its links resolve, its pages are in the book, and its commands run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use netmon_mcp::tools::{QUESTIONS, diagnose};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::{
    harness::*,
    past::{Recorder, facts, recording},
};

const README_LINES: usize = 150;

/// The page about the codes of `diagnose`.
const FINDINGS: &str = "docs/diagnose.md";

/// Commands that a test of this suite cannot run, by their first word, and the reason why the documentation may use
/// them.
const ELSEWHERE: [(&str, &str); 8] = [
    ("claude", "Claude Code is not installed; clients.rs runs MCP clients"),
    ("make", "this test looks only whether the target exists"),
    ("nix", "`make nix-build` runs it"),
    ("./result", "`make nix-build` compares the image"),
    ("ssh", "hosts.rs starts an sshd of its own"),
    ("systemctl", "`make vm-service` runs the units"),
    ("systemd-sysusers", "`make vm-service` makes the accounts"),
    ("usermod", "it would change this host"),
];

/// The checked parts of a Markdown page.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    anchors: BTreeSet<String>,
    /// Language and text of each block of code.
    blocks: Vec<(String, String)>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Every page of the book, and the summary.
fn book() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["docs", "docs/tools"] {
        let names = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let pages_of = names.map(|name| Path::new(folder).join(name));
        pages.extend(pages_of.filter(|file| file.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

/// Every page with checked links.
fn pages() -> Vec<PathBuf> {
    ["README.md", "SECURITY.md", "CONTRIBUTING.md"].map(PathBuf::from).into_iter().chain(book()).collect()
}

/// The text, with the files that mdBook includes.
fn whole(file: &Path) -> String {
    let include = |line: &str| {
        let named = line.strip_prefix("{{#include ").and_then(|rest| rest.strip_suffix("}}"));
        named.map_or_else(|| line.to_owned(), |named| text(&file.parent().unwrap().join(named)))
    };
    text(file).lines().map(|line| include(line) + "\n").collect()
}

fn parse(file: &Path) -> Page {
    let (mut page, text) = (Page::default(), whole(file));
    let (mut heading, mut code) = (None::<String>, None::<(String, String)>);
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => page.anchors.extend(heading.take().map(|title| anchor(&title))),
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                code = Some((language.into_string(), String::new()));
            }
            Event::End(TagEnd::CodeBlock) => page.blocks.extend(code.take()),
            Event::Text(part) | Event::Code(part) => {
                if let Some((_, text)) = &mut code {
                    *text += &part;
                } else if let Some(title) = &mut heading {
                    *title += &part;
                }
            }
            _ => {}
        }
    }
    page
}

/// The anchor of a heading on GitHub and in mdBook.
fn anchor(title: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
    title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

#[test]
fn every_link_resolves() {
    let mut dead = Vec::new();
    for file in pages() {
        for link in parse(&file).links.iter().filter(|link| !link.starts_with("https://")) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let Ok(found) = fs::canonicalize(root().join(&target)) else {
                dead.push(format!("{}: {link}", file.display()));
                continue;
            };
            let found = found.strip_prefix(fs::canonicalize(root()).unwrap()).unwrap().to_owned();
            if !fragment.is_empty() && !parse(&found).anchors.contains(fragment) {
                dead.push(format!("{}: {link}: no such heading", file.display()));
            }
            if file.starts_with("docs") && !found.starts_with("docs") {
                dead.push(format!("{}: {link} is not in the book", file.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = Path::new("docs/SUMMARY.md");
    let listed: BTreeSet<PathBuf> = parse(summary).links.iter().map(|link| Path::new("docs").join(link)).collect();
    let there: BTreeSet<PathBuf> = book().into_iter().filter(|file| file != summary).collect();
    assert_eq!(listed, there);
}

#[test]
fn every_tool_page_states_its_blind_spots() {
    for question in QUESTIONS.iter() {
        let page = parse(&Path::new("docs/tools").join(question.name).with_extension("md"));
        assert!(page.anchors.contains("what-it-cannot-see"), "{}", question.name);
    }
}

#[test]
fn every_code_is_in_the_table() {
    let page = text(Path::new(FINDINGS));
    let first = |line: &str| Some(line.strip_prefix("| `")?.split_once("` |")?.0.to_owned());
    let mut listed: Vec<String> = page.lines().filter_map(first).collect();
    let mut codes: Vec<String> = diagnose::codes().map(|code| code.to_string()).collect();
    listed.sort_unstable();
    codes.sort_unstable();
    assert_eq!(listed, codes);
}

#[test]
fn drawing_of_causes_matches_the_rules() {
    let page = parse(Path::new(FINDINGS));
    let (_, drawing) = page.blocks.iter().find(|(language, _)| language == "text").unwrap();
    let explained: BTreeSet<(String, String)> = diagnose::explains()
        .flat_map(|(cause, symptoms)| symptoms.iter().map(move |symptom| (cause.to_string(), symptom.to_string())))
        .collect();
    assert_eq!(drawn(drawing), explained);
}

/// The pairs of cause and symptom in the drawing. The common symptoms have a column each. The names of the further
/// symptoms are at the right, on several lines if they are many.
fn drawn(drawing: &str) -> BTreeSet<(String, String)> {
    let mut columns = Vec::<(usize, &str)>::new();
    let (mut further, mut cause) = (None::<usize>, "");
    let mut pairs = BTreeSet::new();
    for line in drawing.lines() {
        match (line.find("further symptoms"), further) {
            (Some(at), _) => further = Some(at),
            (None, None) => {
                let name = line.rsplit(' ').next().unwrap();
                columns.push((line.len() - name.len(), name));
            }
            (None, Some(at)) => {
                if !line.starts_with(' ') {
                    cause = line.split(' ').next().unwrap();
                }
                let is_marked = |column: usize| line.get(column..).is_some_and(|rest| rest.starts_with('x'));
                let marked = columns.iter().filter(|(column, _)| is_marked(*column)).map(|(_, name)| *name);
                let named = line.get(at..).unwrap_or_default().split_whitespace();
                pairs.extend(marked.chain(named).map(|symptom| (cause.to_owned(), symptom.to_owned())));
            }
        }
    }
    pairs
}

#[test]
fn readme_is_short() {
    let lines = text(Path::new("README.md")).lines().count();
    assert!(lines <= README_LINES, "{lines} lines");
}

#[test]
fn settings_and_json_in_the_docs_are_valid() {
    let folder = open_folder();
    let file = folder.path().join("netmon.toml");
    for page in pages() {
        for (language, block) in parse(&page).blocks {
            match language.as_str() {
                "json" => drop(serde_json::from_str::<serde_json::Value>(&block).unwrap()),
                "toml" => {
                    fs::write(&file, &block).unwrap();
                    let mut check = Command::new("setpriv");
                    check
                        .args(["--reuid=65534", "--regid=65534", "--clear-groups", GATEWAY])
                        .arg("--config")
                        .arg(&file);
                    let output = check.arg("--check-config=syntax").output().unwrap();
                    assert!(output.status.success(), "{}: {block}{output:?}", page.display());
                }
                _ => {}
            }
        }
    }
}

/// Whatever the white space is.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn clients_command_prints_the_snippets_of_the_page() {
    let output = Command::new(GATEWAY).arg("clients").output().unwrap();
    let program = fs::canonicalize(GATEWAY).unwrap(); // as the kernel names it
    let printed = String::from_utf8(output.stdout).unwrap().replace(program.to_str().unwrap(), "netmon-mcp");
    let page = parse(Path::new("docs/clients.md"));
    let first = page.blocks.iter().position(|(_, block)| block.starts_with("claude mcp add")).unwrap();
    let until = page.blocks.iter().position(|(_, block)| block.starts_with("alice ")).unwrap();
    for (_, block) in &page.blocks[first..until] {
        for snippet in if block.starts_with('{') { vec![block.as_str()] } else { block.lines().collect() } {
            assert!(squeezed(&printed).contains(&squeezed(snippet)), "{snippet}\nis not in:\n{printed}");
        }
    }
    let clients = text(Path::new("docs/clients.md"));
    for name in clients.split("**").skip(1).step_by(2) {
        assert!(printed.contains(name), "{name} is not in:\n{printed}");
    }
}

/// The commands of a page, in their order.
fn commands(page: &Page) -> Vec<String> {
    let mut found = Vec::new();
    for (language, block) in &page.blocks {
        match language.as_str() {
            "console" => found.extend(block.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned)),
            "sh" => {
                let mut command = String::new();
                for line in block.lines() {
                    command += without_comment(line);
                    if command.ends_with('\\') || command.matches('\'').count() % 2 == 1 {
                        command += "\n";
                    } else if !command.is_empty() {
                        found.push(std::mem::take(&mut command));
                    }
                }
                assert!(command.is_empty(), "it does not end: {command}");
            }
            _ => {}
        }
    }
    found
}

fn without_comment(line: &str) -> &str {
    line.split_once(" # ").map_or(line, |(command, _)| command).trim_end()
}

/// The reason why a command does not run here.
fn elsewhere(command: &str) -> Option<&'static str> {
    let command = command.strip_prefix("sudo ").unwrap_or(command);
    let word = command.split(' ').next().unwrap();
    if word == "make" {
        let rules = text(Path::new("Makefile")) + &text(Path::new("packaging/install.mk"));
        let target = command.split(' ').nth(1).unwrap();
        let is_rule = |line: &str| line.split(':').next().is_some_and(|names| names.split(' ').any(|it| it == target));
        assert!(rules.lines().any(|line| line.contains(':') && is_rule(line)), "{command}");
    }
    ELSEWHERE.iter().map(|(other, _)| *other).find(|other| *other == word)
}

/// The command with a short window, and with an end if it watches.
fn shortened(command: &str) -> String {
    let has_window = |question: &netmon_mcp::tools::Question| {
        let input = (question.input_schema)();
        ["duration", "duration_ms"].iter().any(|name| input["properties"].get(name).is_some())
    };
    let asked = |word: &str| QUESTIONS.iter().any(|question| question.name == word && has_window(question));
    let opens_window =
        command.contains("netmon-mcp ") && !["--help", "-mcp tools", "--watch"].iter().any(|it| command.contains(it));
    let mut words = Vec::new();
    for word in command.split(' ') {
        match word {
            _ if word.starts_with("--watch") => words.push("--watch=0.2".into()),
            _ if opens_window && word.starts_with("duration") => {}
            _ if opens_window && asked(word) => words.push(format!("{word} duration=200ms")),
            "&" => {} // the function `netmon-mcp` below starts the server in the background
            _ => words.push(word.replace("/etc/netmon", "etc")),
        }
    }
    let command = words.join(" ");
    if command.contains("--watch") { command + " | sed 3q" } else { command }
}

/// The prelude of a page's commands: netmon-mcp asks the test's daemon and recording, and a server continues in the
/// background.
fn before(socket: &Path, recording: &Path) -> String {
    format!(
        r#"set -Eeu -o pipefail
trap 'echo "failed: $BASH_COMMAND" >&2; test ! -e log || cat log >&2' ERR
trap 'test ! -e server || kill "$(cat server)"' EXIT
mkdir etc
sudo() {{ "$@"; }}
netmon-mcp() {{
    if test "$1" != http; then {GATEWAY} --socket {socket} --recording {recording} "$@"; return; fi
    {GATEWAY} --socket {socket} "$@" >log 2>&1 </dev/null &
    echo $! >server
    until grep -q 'serving http' log; do kill -0 "$(cat server)" || {{ cat log >&2; return 1; }}; done
}}
"#,
        socket = socket.display(),
        recording = recording.display()
    )
}

/// Each page is a script of an ordinary user in its own network namespace, so its ports are free.
#[test]
fn every_command_in_the_docs_runs() {
    let netns = Netns::new();
    let daemon = daemon_in(&netns);
    let (_kept, recording) = recording();
    let _recorder = Recorder::start(&daemon.socket, &recording, &[]);
    until("a window is recorded", || facts(&recording)?.period);
    let mut named = BTreeSet::new();
    for file in pages() {
        let page = parse(&file);
        let (others, ours): (Vec<_>, Vec<_>) =
            commands(&page).into_iter().partition(|command| elsewhere(command).map(|it| named.insert(it)).is_some());
        for command in &others {
            println!("{}: not run: {command}", file.display());
        }
        if ours.is_empty() {
            continue;
        }
        let folder = open_folder();
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let lines = ours.iter().map(|command| format!("{}\n", shortened(command)));
        let script = before(&daemon.socket, &recording) + &lines.collect::<String>();
        let mut shell = netns.command("setpriv");
        shell.args(["--reuid=65534", "--regid=65534", "--groups=65534", "bash", "-c", &script]);
        let output = shell.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !out.is_empty(), "{}:\n{script}\n{out}\n{err}", file.display());
        let calls = script.matches("\"tools/call\"").count();
        assert_eq!(out.matches("\"structuredContent\"").count(), calls, "{}: {out}", file.display());
    }
    assert_eq!(named, ELSEWHERE.iter().map(|(word, _)| *word).collect(), "each is in a page");
}
