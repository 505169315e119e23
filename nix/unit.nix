# Reads a unit file of packaging/systemd, so that NixOS runs what `make install` installs:
# { Unit = { Description = "…"; … }; Service = { … }; }. A directive that is said several times is a list.
{ lib }:
file:
let
  value =
    text:
    if text == "true" then
      true
    else if text == "false" then
      false
    else
      text;
  add =
    set: key: text:
    set // { ${key} = if set ? ${key} then lib.toList set.${key} ++ [ (value text) ] else value text; };
  line =
    state: text:
    let
      section = builtins.match "\\[([A-Za-z]+)]" text;
      directive = builtins.match "([A-Za-z]+)=(.*)" text;
    in
    if text == "" || lib.hasPrefix "#" text then
      state
    else if section != null then
      state // { current = builtins.head section; }
    else if directive != null then
      state
      // {
        sections = state.sections // {
          ${state.current} = add (state.sections.${state.current} or { }) (builtins.head directive) (
            lib.last directive
          );
        };
      }
    else
      throw "${toString file}: not a line of a unit: ${text}";
  parsed = lib.foldl' line {
    current = null;
    sections = { };
  } (lib.splitString "\n" (builtins.readFile file));
in
parsed.sections
