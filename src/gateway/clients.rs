//! How to point MCP clients at this server.

/// Instructions for the common clients, with `command` as the server's path.
pub fn instructions(command: &str) -> String {
    format!(
        r#"Claude Code:
  claude mcp add netmon -- {command}

Claude Desktop (claude_desktop_config.json), Cursor (.cursor/mcp.json) and most others:
  {{ "mcpServers": {{ "netmon": {{ "command": "{command}" }} }} }}

opencode (opencode.json):
  {{ "$schema": "https://opencode.ai/config.json",
    "mcp": {{ "netmon": {{ "type": "local", "command": ["{command}"], "enabled": true }} }} }}

VS Code (.vscode/mcp.json):
  {{ "servers": {{ "netmon": {{ "type": "stdio", "command": "{command}" }} }} }}

Windows, to measure the WSL host:
  {{ "mcpServers": {{ "netmon": {{ "command": "wsl.exe", "args": ["--", "sudo", "-n", "{command}"] }} }} }}

A remote host, over SSH or HTTP:
  claude mcp add netmon -- ssh host netmon-mcp
  claude mcp add --transport http netmon https://192.0.2.7:8080/mcp --header "Authorization: Bearer $TOKEN"

The server needs a running netmond, and its user must be in the group netmon. Without the service, let the client
run `sudo -n {command}`, which starts its own netmond. The rule for it in sudoers:
  USER ALL=(root) NOPASSWD: {command} ""
"#
    )
}
