//! How to point MCP clients at this server.

/// Instructions for the common clients, with `command` as the server's path.
pub fn instructions(command: &str) -> String {
    format!(
        r#"Claude Code:
  claude mcp add netmon -- {command}

Claude Desktop (claude_desktop_config.json), Cursor (.cursor/mcp.json):
  {{"mcpServers": {{"netmon": {{"command": "{command}"}}}}}}

opencode (opencode.json):
  {{"mcp": {{"netmon": {{"type": "local", "command": ["{command}"]}}}}}}

VS Code (.vscode/mcp.json):
  {{"servers": {{"netmon": {{"type": "stdio", "command": "{command}"}}}}}}

The server needs a running netmond, and its user must be in the group netmon. Without the service, let the client
run `sudo -n {command}`, which starts its own netmond. The rule for it in sudoers:
  USER ALL=(root) NOPASSWD: {command} ""
"#
    )
}
