# The functions of nixpkgs' lib that this flake uses, with the same meaning.
let
  inherit (builtins)
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elemAt
    filter
    foldl'
    isList
    isString
    length
    listToAttrs
    mapAttrs
    match
    replaceStrings
    split
    stringLength
    substring
    ;

  nameValuePair = name: value: { inherit name value; };
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  concatMapStringsSep =
    separator: f: list:
    concatStringsSep separator (map f list);
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix =
    suffix: text:
    stringLength text >= stringLength suffix
    && substring (stringLength text - stringLength suffix) (stringLength suffix) text == suffix;
  removeSuffix =
    suffix: text:
    if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;
  hasInfix = infix: text: length (lib.splitString infix text) > 1;
  escape = list: replaceStrings list (map (c: "\\${c}") list);

  # A set of files: the list of included paths and the list of excluded ones.
  fileset = {
    unions = sets: {
      within = concatMap (set: set.within or [ set ]) sets;
      without = concatMap (set: set.without or [ ]) sets;
    };
    difference = a: b: {
      within = a.within or [ a ];
      without = a.without or [ ] ++ b.within or [ b ];
    };
    toSource =
      { root, fileset }:
      let
        under = path: folder: path == toString folder || hasPrefix "${toString folder}/" path;
        missing = filter (path: !builtins.pathExists path) fileset.within;
      in
      if missing != [ ] then
        throw "lib.fileset: ${toString missing} does not exist"
      else
        builtins.path {
          path = root;
          name = "source";
          filter =
            path: _:
            any (wanted: under path wanted || under (toString wanted) path) fileset.within
            && !any (under path) fileset.without;
        };
  };

  mkOption = attributes: { _type = "option"; } // attributes;
  mkEnableOption =
    what:
    mkOption {
      type = lib.types.bool;
      default = false;
      example = true;
      description = "Whether to enable ${what}.";
    };

  lib = {
    inherit
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatMapStringsSep
      concatStringsSep
      elemAt
      escape
      fileset
      filter
      foldl'
      genAttrs
      hasInfix
      hasPrefix
      hasSuffix
      isList
      isString
      length
      listToAttrs
      mapAttrs
      match
      mkEnableOption
      mkOption
      nameValuePair
      removeSuffix
      replaceStrings
      ;
    inherit (builtins)
      elem
      hasAttr
      readFile
      readDir
      ;
    inherit (lib.modules)
      discharge
      evalModules
      fail
      merge
      mkIf
      mkMerge
      mkOrder
      mkOverride
      push
      ;
    modules = import ./modules.nix lib;
    types = import ./types.nix lib;

    concatMapAttrs = f: set: foldl' (all: one: all // one) { } (lib.mapAttrsToList f set);
    filterAttrsRecursive =
      keep: set:
      lib.mapAttrs (
        _: value: if builtins.isAttrs value then lib.filterAttrsRecursive keep value else value
      ) (lib.filterAttrs keep set);
    filterAttrs =
      f: set:
      listToAttrs (
        concatMap (name: lib.optional (f name set.${name}) (nameValuePair name set.${name})) (attrNames set)
      );
    # A value as Nix source, on one line.
    generators.toPretty =
      _: value:
      let
        show = lib.generators.toPretty { };
        words = [ "[" ] ++ map show value ++ [ "]" ];
        pairs = lib.mapAttrsToList (name: v: "${name} = ${show v};") value;
      in
      if builtins.isAttrs value then
        concatStringsSep " " ([ "{" ] ++ pairs ++ [ "}" ])
      else if isList value then
        concatStringsSep " " words
      else
        builtins.toJSON value;
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    getExe' = package: program: "${package}/bin/${program}";
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    inherit (builtins) head;
    last = list: elemAt list (length list - 1);
    licenses.mit.spdxId = "MIT";
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    imap0 = f: list: builtins.genList (i: f i (elemAt list i)) (length list);
    makeBinPath = concatMapStringsSep ":" (package: "${package}/bin");
    mkBefore = lib.mkOrder 500;
    mkAfter = lib.mkOrder 1500;
    mkDefault = lib.mkOverride 1000;
    mkForce = lib.mkOverride 50;
    mkPackageOption =
      pkgs: name: _:
      mkOption {
        type = lib.types.package;
        default = pkgs.${name};
        defaultText = lib.literalExpression "pkgs.${name}";
        description = "The ${name} package to use.";
      };
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    optionals = condition: list: if condition then list else [ ];
    platforms.linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    escapeShellArg = text: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString text)}'";
    escapeShellArgs = concatMapStringsSep " " lib.escapeShellArg;
    sort = builtins.sort;
    showOption = concatStringsSep ".";
    splitString =
      separator: text: filter isString (split (escape [ "." "+" "*" "?" "|" ] separator) text);
    toList = value: if isList value then value else [ value ];
    versionAtLeast = a: b: builtins.compareVersions a b >= 0;
  };
in
lib
