# The work of nixpkgs' cargo hooks, for setup.sh.
cargoOptions="--offline --locked --jobs $cores --profile $cargoProfile"

configurePhase() {
	runHook preConfigure
	# In the build's own folder, so that no binary refers to the crates' sources in the store.
	ln -s "$cargoDeps" "$TMPDIR/vendor"
	mkdir -p .cargo
	printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "%s"\n' "$TMPDIR/vendor" >.cargo/config.toml
	export CARGO_HOME=$TMPDIR/cargo-home CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0
	if [ -n "${cargoDependencies-}" ]; then tar -xf "$cargoDependencies"; fi
	runHook postConfigure
}

buildPhase() {
	runHook preBuild
	cargo build $cargoOptions ${cargoBuildFlags[@]+"${cargoBuildFlags[@]}"}
	runHook postBuild
}

checkPhase() {
	runHook preCheck
	cargo test $cargoOptions ${cargoTestFlags[@]+"${cargoTestFlags[@]}"} -- ${checkFlags[@]+"${checkFlags[@]}"}
	runHook postCheck
}

installPhase() {
	runHook preInstall
	find target/debug -maxdepth 1 -type f -perm -u+x -exec install -D -t "$out/bin" {} +
	runHook postInstall
}
