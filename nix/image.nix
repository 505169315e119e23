# One image, two programs: `netmond` for the container that measures, `netmon-mcp http` for the one that answers. It is
# what the Containerfile makes, under the name that compose.yaml asks for: `make nix-build` compares the two.
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
    Labels."org.opencontainers.image.description" = netmon-mcp.meta.description;
  };
}
