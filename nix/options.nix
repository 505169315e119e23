# The module's options as Markdown: `make nix/options.md` writes this text to options.md.
{ lib, options }:
let
  show =
    value:
    let
      text =
        if value._type or "" == "literalExpression" then
          lib.removeSuffix "\n" value.text
        else
          lib.generators.toPretty { multiline = false; } value;
    in
    if lib.hasInfix "\n" text then
      "\n\n  ```nix\n  ${lib.replaceStrings [ "\n" ] [ "\n  " ] text}\n  ```"
    else
      " `${text}`";
  line =
    name: set: value:
    lib.optionalString (set ? ${name}) "- ${name}:${value}\n";
  entry =
    path: option:
    ''
      ### `${lib.showOption path}`

      ${lib.removeSuffix "\n" (lib.replaceStrings [ "{option}" ] [ "" ] option.description)}

      - type: ${option.type.description}
    ''
    + line "default" option (show (option.defaultText or option.default))
    + line "example" option (show (option.example or null));
  # The options inside an option with a submodule type.
  within =
    type: if type ? getSubOptions && type.getSubOptions [ ] != { } then type.getSubOptions [ ] else { };
  # The placeholder for a name in a set of submodules.
  any = type: lib.optional (type.name == "attrsOf") "<name>";
  entries =
    path: set:
    if set._type or "" == "option" then
      [ (entry path set) ]
      ++ lib.concatLists (
        lib.mapAttrsToList (name: entries (path ++ any set.type ++ [ name ])) (
          removeAttrs (within set.type) [
            "_module"
            "_freeformOptions"
          ]
        )
      )
    else
      lib.concatLists (lib.mapAttrsToList (name: entries (path ++ [ name ])) set);
in
''
  # Options of the NixOS module

  Written by `make nix/options.md`; `make nix-eval` fails if it is not up to date.

''
+ lib.concatStringsSep "\n" (entries [ "services" "netmon-mcp" ] options.services.netmon-mcp)
