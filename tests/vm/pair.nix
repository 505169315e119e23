# Two hosts with the service: traffic between them, and packets that one of them drops.
{
  host,
  onEveryKernel,
  pkgs,
  ...
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
onEveryKernel
  {
    name = "pair";
    since = "6.1";
  }
  {
    nodes.client = node;
    nodes.server = node;
    testScript = builtins.readFile ./pair.py;
  }
