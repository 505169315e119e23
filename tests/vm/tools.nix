# Every tool, on a host with the service and a little traffic.
{ host, onEveryKernel, ... }:
onEveryKernel { name = "tools"; } {
  nodes.machine = host;
  testScript = builtins.readFile ./tools.py;
}
