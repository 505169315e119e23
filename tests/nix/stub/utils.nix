# The `utils` argument that NixOS passes to modules.
{ lib }:
{
  utils.escapeSystemdExecArgs = lib.concatMapStringsSep " " (
    argument: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString argument))
  );
}
