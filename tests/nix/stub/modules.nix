# Modules and options: definitions with priorities and conditions, merged by type.
lib:
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    foldl'
    head
    isAttrs
    isFunction
    isPath
    isString
    mapAttrs
    zipAttrsWith
    ;
  inherit (lib) genAttrs last showOption;

  kind = value: if isAttrs value then value._type or "" else "";
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };

  mkOrder = order: content: {
    _type = "order";
    inherit order content;
  };

  # The value of a definition: [ { priority, value } ].
  discharge =
    priority: definition:
    if kind definition == "if" then
      if definition.condition then discharge priority definition.content else [ ]
    else if kind definition == "merge" then
      concatMap (discharge priority) definition.contents
    else if kind definition == "override" then
      [
        {
          inherit (definition) priority;
          value = definition.content; # lazy: evaluated only if it counts
        }
      ]
    else
      [
        {
          inherit priority;
          value = definition;
        }
      ];

  # For the counted values: the content of one with an order, and 1000 as the order of the others.
  place =
    value:
    if kind value == "order" then
      value
    else
      {
        order = 1000;
        content = value;
      };

  # The same one level down, without evaluating a condition. A set definition becomes definitions of its attributes, so
  # it may depend on the configuration that contains it.
  push =
    definition:
    if kind definition == "if" then
      map (mapAttrs (_: mkIf definition.condition)) (push definition.content)
    else if kind definition == "merge" then
      concatMap push definition.contents
    else if kind definition == "override" then
      map (mapAttrs (_: mkOverride definition.priority)) (push definition.content)
    else
      [ definition ];

  fail = path: text: throw "The option `${showOption path}' ${text}";

  # The value of an option of `type` with these definitions.
  merge =
    path: type: definitions:
    let
      all = concatMap (discharge 100) definitions;
      best = foldl' (least: d: if d.priority < least then d.priority else least) 9999 all;
      values = map (it: it.content) (
        builtins.sort (a: b: a.order < b.order) (
          map (d: place d.value) (filter (d: d.priority == best) all)
        )
      );
      bad = filter (value: !(type.check value)) values;
    in
    if bad != [ ] then
      throw "A definition for option `${showOption path}' is not of type `${type.description}'. It is a ${builtins.typeOf (head bad)}."
    else
      type.merge path values;

  # The modules and all their imports, each once: by key, or by the path of the file.
  loadWith =
    arguments: modules:
    let
      load =
        parent: number: module:
        let
          isFile = isPath module || isString module;
          value = if isFile then import module else module;
          set =
            if isFunction value then
              value (builtins.intersectAttrs (builtins.functionArgs value) arguments)
            else
              value;
          isModule = set ? options || set ? config || set ? freeformType;
          structure = [
            "_file"
            "imports"
            "key"
          ];
          key = set.key or (if isFile then toString module else "${parent}:${toString number}");
        in
        {
          inherit key;
          module = if isModule then set else { config = removeAttrs set structure; };
          imports = lib.imap0 (load key) (set.imports or [ ]);
        };
    in
    map (it: it.module) (
      builtins.genericClosure {
        startSet = lib.imap0 (load "") modules;
        operator = it: it.imports;
      }
    );

  mergeOptions =
    a: b:
    a
    // mapAttrs (name: o: if a ? ${name} && kind o != "option" then mergeOptions a.${name} o else o) b;

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      arguments = {
        inherit
          config
          extendModules
          lib
          options
          ;
        name = if prefix == [ ] then "" else last prefix;
      }
      // specialArgs;
      loaded = loadWith arguments modules;
      extendModules =
        more:
        evalModules {
          inherit specialArgs prefix;
          modules = all ++ more.modules;
        };
      all = modules;
      options = foldl' mergeOptions { } (map (m: m.options or { }) loaded);
      freeform = filter (type: type != null) (map (m: m.freeformType or null) loaded);
      declared =
        path: option: definitions:
        let
          all = definitions ++ (if option ? default then [ (mkOverride 1500 option.default) ] else [ ]);
          type = option.type or lib.types.anything;
        in
        if concatMap (discharge 100) all == [ ] then
          if type ? empty then type.empty path else fail path "was accessed but has no value defined."
        else
          (option.apply or (value: value)) (merge path type all);
      build =
        path: tree: definitions:
        let
          byName = zipAttrsWith (_: found: found) (concatMap push definitions);
          unknown = filter (name: !(tree ? ${name})) (attrNames byName);
          free = merge path (head freeform) [ (genAttrs unknown (name: mkMerge byName.${name})) ];
        in
        mapAttrs (
          name: sub:
          (if kind sub == "option" then declared else build) (path ++ [ name ]) sub (byName.${name} or [ ])
        ) tree
        // (
          if unknown == [ ] then
            { }
          else if freeform != [ ] && path == prefix then
            builtins.intersectAttrs (genAttrs unknown (_: null)) free
          else
            fail (path ++ [ (head unknown) ]) "does not exist."
        );
      config = build prefix options (map (m: m.config or { }) loaded);
    in
    {
      inherit config extendModules options;
      freeformType = if freeform == [ ] then null else head freeform;
    };
in
{
  inherit
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
}
