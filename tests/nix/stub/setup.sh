# The builder of every package: the phases of nixpkgs' stdenv, with their names, hooks and environment.
# Attributes come as bash variables and arrays (__structuredAttrs). There is no network and no trust store.
set -euo pipefail
shopt -s nullglob
source .attrs.sh
for output in "${!outputs[@]}"; do export "$output=${outputs[$output]}"; done
for variable in "${!env[@]}"; do export "$variable=${env[$variable]}"; done
export PATH=$tools/bin HOME=/homeless-shelter TMPDIR=$PWD TZ=UTC SOURCE_DATE_EPOCH=315532800
export SSL_CERT_FILE=/no-cert-file.crt NIX_SSL_CERT_FILE=/no-cert-file.crt
# Only declared packages are found; the machine's own libraries are not.
export PKG_CONFIG_LIBDIR= PKG_CONFIG_PATH= NIX_LDFLAGS=
cores=${NIX_BUILD_CORES:-1}

# Runs the hooks of this name: an attribute, and the additions of setup hooks to an array.
runHook() {
	local -n added="${1}Hooks"
	local hook
	for hook in ${added[@]+"${added[@]}"}; do "$hook"; done
	if [ -n "${!1-}" ]; then eval "${!1}"; fi
}

# Called by a package's builder: the attribute of this name, or else the function.
runPhase() {
	echo "== $1" >&2
	if [ -n "${!1-}" ]; then eval "${!1}"; else "$1"; fi
}

preInstallCheckHooks=()
inputs=(${nativeBuildInputs[@]+"${nativeBuildInputs[@]}"})
if [ -n "${doCheck-}" ]; then inputs+=(${nativeCheckInputs[@]+"${nativeCheckInputs[@]}"}); fi
if [ -n "${doInstallCheck-}" ]; then inputs+=(${nativeInstallCheckInputs[@]+"${nativeInstallCheckInputs[@]}"}); fi
for input in ${inputs[@]+"${inputs[@]}"}; do
	if [ -d "$input/bin" ]; then PATH=$input/bin:$PATH; fi
	if [ -f "$input/nix-support/setup-hook" ]; then source "$input/nix-support/setup-hook"; fi
done
for input in ${buildInputs[@]+"${buildInputs[@]}"}; do
	PKG_CONFIG_PATH=$input/lib/pkgconfig:$PKG_CONFIG_PATH
	NIX_LDFLAGS+=" -L$input/lib -Wl,-rpath,$input/lib"
done

unpackPhase() {
	if [ -d "$src" ]; then
		sourceRoot=source
		cp -r --no-preserve=ownership "$src" source
	else
		tar -xf "$src"
	fi
	chmod -R u+w "$sourceRoot"
	runHook postUnpack
	cd "$sourceRoot"
}
patchPhase() { runHook prePatch; for patch in ${patches[@]+"${patches[@]}"}; do patch -p1 <"$patch"; done; runHook postPatch; }
configurePhase() { runHook preConfigure; runHook postConfigure; }
buildPhase() { runHook preBuild; make -j "$cores" ${makeFlags[@]+"${makeFlags[@]}"}; runHook postBuild; }
checkPhase() { runHook preCheck; make check; runHook postCheck; }
installPhase() { runHook preInstall; make install PREFIX="$out"; runHook postInstall; }
fixupPhase() {
	local file
	for file in "$out"/bin/*; do
		if [ ! -L "$file" ] && [ "$(head -c 4 "$file" | tail -c 3)" = ELF ]; then strip "$file"; fi
	done
	runHook postFixup
}
installCheckPhase() { runHook preInstallCheck; runHook postInstallCheck; }

if [ -n "${phaseHook-}" ]; then source "$phaseHook"; fi
if [ -n "${buildCommand-}" ]; then
	eval "$buildCommand"
	exit 0
fi
if [ -z "${phases-}" ]; then
	phases=(unpackPhase patchPhase configurePhase buildPhase)
	if [ -n "${doCheck-}" ]; then phases+=(checkPhase); fi
	phases+=(installPhase fixupPhase)
	if [ -n "${doInstallCheck-}" ]; then phases+=(installCheckPhase); fi
fi
for phase in "${phases[@]}"; do runPhase "$phase"; done
exit 0 # a late coreutils program closes its output early, and Nix would kill the builder for that
