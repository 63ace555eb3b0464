# The settings of services as the agent reads them (docs/calls.md): { SERVICE = TEXT; }, for a folder `rpc-config`.
let
  inherit (builtins) attrNames concatStringsSep filter listToAttrs map;

  # A program in a container is started for each connection, by a socket of systemd's: to the agent it is a socket.
  isSocket = inContainer: service: inContainer || service.kind == "socket";

  lines = inContainer: service:
    (if isSocket inContainer service && !service.descriptor then [ "skip-service-descriptor=true" ] else [ ])
    ++ (if service.exitOnServiceEof then [ "exit-on-service-eof=true" ] else [ ])
    ++ (if service.exitOnClientEof then [ "exit-on-client-eof=true" ] else [ ]);
in
inContainer: services:
listToAttrs (filter (file: file.value != "") (map
  (name: {
    inherit name;
    value = concatStringsSep "" (map (line: "${line}\n") (lines inContainer services.${name}));
  })
  (attrNames services)))
