# The names of the tools in `src/tools`. `make nix-eval` compares this list with `tools/list`.
let
  source = ../src/tools;
  entries = builtins.readDir source;
  folders = builtins.filter (name: entries.${name} == "directory") (builtins.attrNames entries);
  text = folder: builtins.readFile (source + "/${folder}/mod.rs");
  named = folder: builtins.split "const NAME: &'static str = \"([^\"]*)\"" (text folder);
in
map (folder: builtins.head (builtins.elemAt (named folder) 1)) folders
