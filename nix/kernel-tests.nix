# The compiled kernel tests (tests/suite, tests/stock): the VM tests run them as root in guests. They start the two
# programs at their build paths, so `kernel-tests` first puts them there.
{
  jq,
  netmon-mcp,
}:
netmon-mcp.overrideAttrs (previous: {
  pname = "netmon-mcp-kernel-tests";
  outputs = [ "out" ];
  nativeBuildInputs = previous.nativeBuildInputs ++ [ jq ];
  postBuild = "";
  buildPhase = ''
    cargo test --offline --locked --no-run --test suite --test stock --message-format json >messages.json
  '';
  doCheck = false;
  doInstallCheck = false;
  installPhase = ''
    mkdir -p $out/bin $out/lib/netmon-mcp
    jq -r 'select(.executable) | "\(.target.name) \(.executable)"' messages.json | sort -u >$out/lib/netmon-mcp/built
    while read -r name built; do
      install -D "$built" "$out/lib/netmon-mcp/$name"
      strip "$out/lib/netmon-mcp/$name"
    done <$out/lib/netmon-mcp/built
    cat >$out/bin/kernel-tests <<END
    #!/bin/sh
    # usage: kernel-tests TEST: runs one test of tests/suite, or of tests/stock if it names no module.
    set -eu
    while read -r name built; do
      mkdir -p "\$(dirname "\$built")"
      ln -sf "$out/lib/netmon-mcp/\$name" "\$built"
    done <$out/lib/netmon-mcp/built
    case \$1 in *::*) program=suite ;; *) program=stock ;; esac
    exec "$out/lib/netmon-mcp/\$program" --exact "\$1"
    END
    chmod +x $out/bin/kernel-tests
  '';
  postInstall = "";
  meta = previous.meta // {
    description = "Kernel tests of netmon-mcp";
    mainProgram = "kernel-tests";
  };
})
