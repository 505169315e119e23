# The outputs of `nix flake check`: every package, the development shell, checks of them, and the VM tests.
{
  self,
  pkgs,
  own,
  nixosSystem,
}:
let
  inherit (pkgs) lib;
  system = pkgs.stdenv.hostPlatform.system;
in
{
  package = own.netmon-mcp;

  # The image has the same files as that of the Containerfile.
  oci-image = pkgs.runCommand "netmon-mcp-oci-image" { nativeBuildInputs = [ pkgs.python3 ]; } ''
    mkdir expected
    sh ${../packaging/oci/layout} expected ${own.netmon-mcp}/bin ${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt
    ${own.oci-image} | python3 ${../tests/oci/compare.py} ${../Containerfile} ${../compose.yaml} expected >$out
    cat $out
  '';

  # `make` finds every program in the development shell, and installs nothing.
  shell = self.devShells.${system}.default.overrideAttrs (_: {
    name = "netmon-mcp-shell";
    buildPhase = ''
      IN_NIX_SHELL=pure sh ${own.netmon-mcp.src}/scripts/prerequisites a-package-that-debian-does-not-have
      for program in cargo cargo-clippy cargo-fmt "$CLANG" "$CLANG_FORMAT" bpftool curl fish ip nft npm openssl ps python3 \
        rustc setpriv setsid ssh sshd zsh; do
        command -v "$program"
      done
      touch $out
    '';
    phases = [ "buildPhase" ];
  });

  # Programs, hooks and maps equal the reviewed list.
  bpf-objects =
    pkgs.runCommand "netmon-mcp-bpf-objects"
      {
        nativeBuildInputs = [
          pkgs.bpftools
          pkgs.python3
        ];
      }
      ''
        python3 ${../scripts/list-bpf} ${own.bpf-objects}/share/bpf >$out
        diff ${../tests/nix/bpf-objects.txt} $out || {
          echo 'tests/nix/bpf-objects.txt is not up to date: run make tests/nix/bpf-objects.txt and review it' >&2
          exit 1
        }
      '';

  # A second build, in another folder and with unoptimized programs around them, has the same BPF objects.
  reproducible-bpf =
    let
      again = own.netmon-mcp.overrideAttrs (_: {
        name = "netmon-mcp-again";
        postUnpack = ''
          mv "$sourceRoot" another-folder
          sourceRoot=another-folder
        '';
        cargoBuildType = "debug";
        doCheck = false;
      });
    in
    pkgs.runCommand "netmon-mcp-reproducible-bpf" { } ''
      diff -r ${own.bpf-objects}/share/bpf ${again.bpf}/share/bpf
      (cd ${again.bpf}/share/bpf && sha256sum *.bpf.o) >$out
    '';

  # The module's cases hold.
  module = import ./module-cases.nix {
    inherit lib pkgs;
    module = self.nixosModules.default;
    overlay = self.overlays.default;
    inherit nixosSystem;
  };

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
// import ../tests/vm { inherit own pkgs self; }
