# The tests that depend on the kernel (kernel-tests), run as root in a guest beside the installed service.
{
  host,
  onEveryKernel,
  own,
  pkgs,
  ...
}:
onEveryKernel { name = "suite"; } {
  nodes.machine = {
    imports = [ host ];
    # Like `sudo netmon-mcp`: the tests of nf_tables' verdicts need it while netmond loads.
    systemd.services.netmond.serviceConfig = {
      AmbientCapabilities = [ "CAP_SYS_ADMIN" ];
      CapabilityBoundingSet = [ "CAP_SYS_ADMIN" ];
    };
    environment.etc."netmon-kernel-tests".source = ./kernel-tests;
    environment.systemPackages = [
      own.kernel-tests
      pkgs.iproute2
      pkgs.nftables
      pkgs.util-linux
    ];
  };
  testScript = builtins.readFile ./suite.py;
}
