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

  mkType = description: check: merge: { inherit description check merge; };
  # A value that all its definitions must agree on.
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
  ints.between =
    low: high:
    scalar "integer between ${toString low} and ${toString high} (both inclusive)" (
      value: isInt value && value >= low && value <= high
    );
  port = ints.between 0 65535 // {
    description = "16 bit unsigned integer; between 0 and 65535 (both inclusive)";
  };
  str = scalar "string" isString;
  lines = mkType "strings concatenated with \"\\n\"" isString (_: concatStringsSep "\n");
  path = scalar "absolute path" (
    value: isPath value || isDerivation value || (isString value && substring 0 1 value == "/")
  );
  package = scalar "package" isDerivation;
  raw = anything;
  enum =
    values: scalar "one of ${lib.concatMapStringsSep ", " toJSON values}" (value: elem value values);
  strMatching =
    pattern:
    scalar "string matching the pattern ${pattern}" (
      value: isString value && match pattern value != null
    );
  nullOr =
    type:
    mkType "null or ${type.description}" (value: value == null || type.check value) (
      path: values:
      let
        some = filter (value: value != null) values;
      in
      if some == [ ] then null else type.merge path some
    );
  listOf =
    type:
    mkType "list of ${type.description}" isList (
      path: values: map (value: lib.merge path type [ value ]) (concatLists values)
    )
    // {
      empty = _: [ ];
    };
  attrsOf =
    type:
    mkType "attribute set of ${type.description}" isAttrs (
      path: values:
      builtins.mapAttrs (name: lib.merge (path ++ [ name ]) type) (
        builtins.zipAttrsWith (_: found: found) (concatMap lib.push values)
      )
    )
    // {
      empty = _: { };
    };
  either =
    a: b:
    mkType "${a.description} or ${b.description}" (value: a.check value || b.check value) (
      path: values: (if all a.check values then a else b).merge path values
    );
  oneOf = types: if length types == 1 then head types else either (head types) (oneOf (tail types));
  # A directive of a unit, which may be said several times.
  unitOption = mkType "systemd option" (_: true) (
    path: values: if any isList values then concatMap lib.toList values else str'.merge path values
  );
  str' = scalar "string" (_: true);
  submodule =
    module:
    mkType "submodule" (value: isAttrs value || isFunction value) (
      path: values:
      (lib.evalModules {
        prefix = path;
        modules = [ module ] ++ map (value: { config = value; }) values;
      }).config
    )
    // {
      empty = path: (submodule module).merge path [ { } ];
      inherit module;
    };
}
