//! The page that HTTP serves, and its view in a chat (MCP Apps): files that are part of this program.

/// Served at `/`. It holds no data: it asks for them with the token that its reader enters.
const INDEX: &str = include_str!("assets/index.html");
const APP: &str = include_str!("assets/app.html");
const STYLE: &str = include_str!("assets/page.css");
const PLOT_STYLE: &str = include_str!("assets/vendor/uplot.css");
const PLOT: &str = include_str!("assets/vendor/uplot.js");
const VIEW: &str = include_str!("assets/view.js");
const CHARTS: &str = include_str!("assets/charts.js");
const TABLES: &str = include_str!("assets/tables.js");
const SOURCE: &str = include_str!("assets/source.js");
const PAGE: &str = include_str!("assets/page.js");
const APP_SCRIPT: &str = include_str!("assets/app.js");
/// The icon of the server and of the page.
pub const ICON: &str = include_str!("assets/icon.svg");

pub const SVG: &str = "image/svg+xml";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// The files below `/page/`: name, type, content.
pub const FILES: [(&str, &str, &str); 9] = [
    ("icon.svg", SVG, ICON),
    ("page.css", CSS, STYLE),
    ("uplot.css", CSS, PLOT_STYLE),
    ("uplot.js", SCRIPT, PLOT),
    ("view.js", SCRIPT, VIEW),
    ("charts.js", SCRIPT, CHARTS),
    ("tables.js", SCRIPT, TABLES),
    ("source.js", SCRIPT, SOURCE),
    ("page.js", SCRIPT, PAGE),
];

/// The page, which asks for a token first where one is required.
pub fn index(requires_token: bool) -> String {
    INDEX.replace("{{auth}}", if requires_token { "token" } else { "none" })
}

/// The view for a chat: one document that loads nothing.
pub fn app(view: &str, title: &str) -> String {
    let style = [PLOT_STYLE, STYLE].concat();
    let script = [PLOT, VIEW, CHARTS, TABLES, APP_SCRIPT].join("\n");
    APP.replace("{{view}}", view)
        .replace("{{title}}", title)
        .replace("{{style}}", &style)
        .replace("{{script}}", &script)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 200_000;

    #[test]
    fn page_fits_its_budget() {
        let page: usize = INDEX.len() + FILES.iter().map(|(_, _, content)| content.len()).sum::<usize>();
        let app = app("live", "Live");
        assert!(page <= BYTES_MAX && app.len() <= BYTES_MAX, "{page} {}", app.len());
    }

    /// The policy of the page forbids both, and a host's policy forbids the second.
    #[test]
    fn page_has_no_inline_code_and_no_foreign_address() {
        for unwanted in ["<style", " style=", "<script>", " onclick", "javascript:", "//fonts", "http:", "https:"] {
            assert!(!INDEX.contains(unwanted), "{unwanted}");
        }
        for (name, _, content) in FILES.iter().filter(|(name, _, _)| !name.starts_with("uplot") && *name != "icon.svg")
        {
            for unwanted in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http:", "https:"]
            {
                assert!(!content.contains(unwanted), "{name}: {unwanted}");
            }
        }
    }

    #[test]
    fn chat_view_is_one_document() {
        let app = app("changes", "Changes");
        assert!(app.contains("data-view=\"changes\"") && !app.contains("{{"), "a placeholder is left");
        assert_eq!((app.matches("<script").count(), app.matches("</script").count()), (1, 1));
        assert!(!app.contains("<link") && !app.contains(" src=") && !app.contains("fetch("), "it loads something");
    }
}
