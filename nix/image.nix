# One image with two programs: `netmond` for the measuring container, `netmon-mcp http` for the serving one. It equals
# the Containerfile's image, under the name in compose.yaml: `make nix-build` compares the two.
{
  cacert,
  dockerTools,
  netmon-mcp,
}:
dockerTools.streamLayeredImage {
  name = "localhost/netmon-mcp";
  tag = "latest";
  extraCommands = ''
    sh ${../packaging/oci/layout} . ${netmon-mcp}/bin ${cacert}/etc/ssl/certs/ca-bundle.crt
  '';
  config = {
    User = "65532:65532";
    Cmd = [
      "netmon-mcp"
      "http"
    ];
    Env = [ "PATH=/usr/bin" ];
    ExposedPorts."8080/tcp" = { };
    Labels = {
      "org.opencontainers.image.description" = netmon-mcp.meta.description;
      # The name of server.json, which the MCP registry compares.
      "io.modelcontextprotocol.server.name" = "io.github.netmon-mcp/netmon-mcp";
    };
  };
}
