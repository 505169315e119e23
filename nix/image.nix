# One image, two programs: `netmond` for the container that measures, `netmon-mcp http` for the one
# that answers. What each must be given is in compose.yaml.
{
  lib,
  dockerTools,
  netmon-mcp,
}:
dockerTools.streamLayeredImage {
  name = "netmon-mcp";
  tag = netmon-mcp.version;
  # Found by name, as in the image that the Containerfile makes.
  contents = [ netmon-mcp ];
  config = {
    Cmd = [
      (lib.getExe netmon-mcp)
      "http"
    ];
    Env = [ "PATH=/bin" ];
    ExposedPorts."8080/tcp" = { };
    Labels."org.opencontainers.image.description" = netmon-mcp.meta.description;
  };
}
