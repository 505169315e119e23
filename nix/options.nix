# The module's options as Markdown: the text of options.md, which `make nix/options.md` writes anew.
{ lib, options }:
let
  show =
    value:
    "`${
      if value._type or "" == "literalExpression" then
        value.text
      else
        lib.generators.toPretty { multiline = false; } value
    }`";
  line =
    name: set: value:
    lib.optionalString (set ? ${name}) "- ${name}: ${value}\n";
  entry =
    path: option:
    ''
      ### `${lib.showOption path}`

      ${lib.removeSuffix "\n" (lib.replaceStrings [ "{option}" ] [ "" ] option.description)}

      - type: ${option.type.description}
    ''
    + line "default" option (show (option.defaultText or option.default))
    + line "example" option (show (option.example or null));
  entries =
    path: set:
    if set._type or "" == "option" then
      [ (entry path set) ]
    else
      lib.concatLists (lib.mapAttrsToList (name: entries (path ++ [ name ])) set);
in
''
  # Options of the NixOS module

  Written by `make nix/options.md`; `make nix-eval` fails if it is not up to date.

''
+ lib.concatStringsSep "\n" (entries [ "services" "netmon-mcp" ] options.services.netmon-mcp)
