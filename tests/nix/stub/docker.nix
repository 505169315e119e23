# `dockerTools`: a script that writes an image in the format of `docker load`. One layer has the needed store paths,
# another one the image's own files.
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
