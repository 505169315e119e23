# What NixOS passes to modules as `utils`.
{ lib }:
{
  utils.escapeSystemdExecArgs = lib.concatMapStringsSep " " (
    argument: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString argument))
  );
}
