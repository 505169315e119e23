# `dockerTools`: a script that writes an image as `docker load` reads it, of one layer with what it needs of the store
# and one with its own files.
{ runCommand }:
{
  streamLayeredImage =
    {
      name,
      tag ? "latest",
      contents ? [ ],
      extraCommands ? "",
      config ? { },
    }:
    let
      base = baseNameOf name;
      layer = runCommand "${base}-layer.tar" { inherit contents; } ''
        mkdir layer
        cd layer
        for content in ''${contents[@]+"''${contents[@]}"}; do cp -rs "$content/." .; done
        ${extraCommands}
        tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$SOURCE_DATE_EPOCH -cf $out .
      '';
    in
    runCommand "stream-${base}"
      {
        image =
          runCommand "image.json"
            {
              exportReferencesGraph.closure = [ layer ];
              image = {
                inherit
                  name
                  tag
                  config
                  layer
                  ;
              };
            }
            ''
              cp .attrs.json $out
            '';
      }
      ''
        sed "s#@image@#$image#" ${./stream.py} >$out
        chmod +x $out
      '';
}
