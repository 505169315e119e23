# Two hosts with the service: traffic between them, and packets that one of them drops.
{
  pkgs,
  host,
  onEveryKernel,
}:
let
  node = {
    imports = [ host ];
    environment.systemPackages = [
      pkgs.jq
      pkgs.nftables
    ];
    networking.firewall.enable = false;
  };
in
onEveryKernel "pair" {
  nodes.client = node;
  nodes.server = node;
  testScript = builtins.readFile ./pair.py;
}
