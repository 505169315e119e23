# What `nix flake check` builds.
{
  self,
  pkgs,
  own,
}:
{
  package = own.netmon-mcp;

  # The bytes of the BPF objects must not depend on where they are compiled.
  reproducible-bpf = own.netmon-mcp.overrideAttrs (_: {
    pname = "netmon-mcp-bpf";
    cargoBuildFlags = [ "--lib" ];
    checkPhase = ''
      scripts/reproducible-bpf target | tee result
    '';
    installPhase = ''
      install -D result "$out/result"
    '';
  });

  style =
    pkgs.runCommand "netmon-mcp-style"
      {
        nativeBuildInputs = [
          pkgs.deadnix
          pkgs.nixfmt
        ];
      }
      ''
        cd ${self}
        find . -name '*.nix' -exec nixfmt --check {} +
        deadnix --fail .
        touch $out
      '';
}
// import ../tests/vm { inherit self pkgs; }
