# The types of options, with nixpkgs' names and descriptions.
lib:
let
  inherit (builtins)
    all
    any
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    match
    substring
    tail
    toJSON
    ;

  mkType = description: check: merge: {
    name = description;
    # The phrase kind of a description. It decides whether a longer description puts it in parentheses.
    class = "noun";
    inherit description check merge;
  };
  phrase =
    plain: type: if elem (type.class or "") plain then type.description else "(${type.description})";
  # A value on which all definitions must agree.
  scalar =
    description: check:
    mkType description check (
      path: values:
      if all (value: value == head values) values then
        head values
      else
        lib.fail path "has conflicting definition values: ${toJSON values}"
    );
  isDerivation = value: isAttrs value && value.type or "" == "derivation";
in
rec {
  anything = mkType "anything" (_: true) (_: head);
  bool = scalar "boolean" isBool;
  int = scalar "signed integer" isInt;
  ints = {
    between =
      low: high:
      scalar "integer between ${toString low} and ${toString high} (both inclusive)" (
        value: isInt value && value >= low && value <= high
      );
    positive = scalar "positive integer, meaning >0" (value: isInt value && value > 0) // {
      class = "clause";
    };
    unsigned = scalar "unsigned integer, meaning >=0" (value: isInt value && value >= 0) // {
      class = "clause";
    };
  };
  port = ints.between 0 65535 // {
    description = "16 bit unsigned integer; between 0 and 65535 (both inclusive)";
  };
  str = scalar "string" isString;
  lines = mkType "strings concatenated with \"\\n\"" isString (_: concatStringsSep "\n");
  path = scalar "absolute path" (
    value: isPath value || isDerivation value || (isString value && substring 0 1 value == "/")
  );
  # A path outside the store that stays there: Nix would copy a path literal into the store.
  externalPath = scalar "absolute path not in the Nix store" (
    value: isString value && substring 0 1 value == "/" && !lib.hasPrefix builtins.storeDir value
  );
  # Packages are never compared: exactly one definition counts.
  package = mkType "package" isDerivation (
    path: values: if length values == 1 then head values else lib.fail path "is defined multiple times."
  );
  raw = anything;
  enum =
    values:
    scalar "one of ${lib.concatMapStringsSep ", " toJSON values}" (value: elem value values)
    // {
      class = "conjunction";
    };
  strMatching =
    pattern:
    scalar "string matching the pattern ${pattern}" (
      value: isString value && match pattern value != null
    );
  nullOr =
    type:
    mkType "null or ${phrase [ "noun" "conjunction" ] type}" (value: value == null || type.check value)
      (
        path: values:
        let
          some = filter (value: value != null) values;
        in
        if some == [ ] then null else type.merge path some
      )
    // {
      class = "conjunction";
      getSubOptions = type.getSubOptions or (_: { });
    };
  listOf =
    type:
    mkType "list of ${phrase [ "noun" "composite" ] type}" isList (
      path: values: map (value: lib.merge path type [ value ]) (concatLists values)
    )
    // {
      class = "composite";
      empty = _: [ ];
    };
  attrsOf =
    type:
    mkType "attribute set of ${phrase [ "noun" "composite" ] type}" isAttrs (
      path: values:
      builtins.mapAttrs (name: lib.merge (path ++ [ name ]) type) (
        # An attribute that only has definitions with false conditions is absent.
        lib.filterAttrs (_: found: concatMap (lib.discharge 100) found != [ ]) (
          builtins.zipAttrsWith (_: found: found) (concatMap lib.push values)
        )
      )
    )
    // {
      name = "attrsOf";
      class = "composite";
      empty = _: { };
      getSubOptions = prefix: (type.getSubOptions or (_: { })) (prefix ++ [ "<name>" ]);
    };
  either =
    a: b:
    mkType "${a.description} or ${b.description}" (value: a.check value || b.check value) (
      path: values: (if all a.check values then a else b).merge path values
    )
    // {
      class = "conjunction";
    };
  oneOf = types: if length types == 1 then head types else either (head types) (oneOf (tail types));
  # A repeatable directive of a unit: with several definitions, each must be a list.
  unitOption = mkType "systemd option" (_: true) (
    path: values:
    if all isList values then
      concatLists values
    else if any isList values then
      lib.fail path "is defined both as a list and as one value: ${toJSON values}"
    else
      str'.merge path values
  );
  str' = scalar "string" (_: true);
  submodule =
    module:
    let
      declared =
        prefix:
        lib.evalModules {
          inherit prefix;
          modules = [ module ];
        };
      free = (declared [ ]).freeformType;
      description =
        if free == null then "submodule" else "open submodule of ${phrase [ "noun" "composite" ] free}";
    in
    mkType description (value: isAttrs value || isFunction value) (
      path: values:
      (lib.evalModules {
        prefix = path;
        modules = [ module ] ++ map (value: { config = value; }) values;
      }).config
    )
    // {
      class = "";
      empty = path: (submodule module).merge path [ { } ];
      inherit module;
      getSubOptions = prefix: (declared prefix).options;
    };
}
