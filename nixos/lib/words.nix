# Names, paths and tokens: what each may be made of. They are those of docs/policy.md and of
# nexus::name, narrowed where a name is also a domain's, a container's and a file's.
let
  shape = import ./shape.nix;
  inherit (shape) matching;
  name = "[A-Za-z][A-Za-z0-9_-]{0,30}";
  # nexus::name::Name.
  service = "[A-Za-z0-9_.-]{1,63}";
  argument = "[A-Za-z0-9_.-]{0,63}";
  user = "[A-Za-z_][A-Za-z0-9_.-]{0,30}";
  path = "/[^\n\r\t\"'\\\\]*";
  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  ipv4 = "${octet}([.]${octet}){3}";
in
{
  patterns = { inherit name service argument; };

  # A qube and a container have 63 bytes together, colon included (docs/policy.md): 31 each.
  name = matching name "a name: a letter, then at most 30 letters, digits, '_' and '-'";
  service = matching service "the name of a service: 1 to 63 letters, digits, '_', '.' and '-'";
  serviceOrAny = matching "[*]|${service}" "a service: its name, or *";
  argument = matching argument "an argument: at most 63 letters, digits, '_', '.' and '-'";
  tag = matching service "a tag: 1 to 63 letters, digits, '_', '.' and '-'";
  user = matching user "the name of a user";
  userOrAny = matching "[*]|${user}" "the name of a user, or * for everybody";

  path = matching path "an absolute path without quotes, backslashes and line ends";
  storePath = matching "/nix/store/[0-9abcdfghijklmnpqrsvwxyz]{32}-[A-Za-z0-9+._?=-]+" "a path in /nix/store";
  inStore = matching "/nix/store/[0-9abcdfghijklmnpqrsvwxyz]{32}-[A-Za-z0-9+._?=-]+(/[^\n\r\t\"'\\\\]*)?"
    "a path below /nix/store";
  # What goes onto a kernel's command line.
  line = matching "[^\n\r\"'\\\\]*" "one line without quotes and backslashes";
  # Not by a pattern: Nix 2.8 matches by recursion, and a policy may be long.
  text = shape.text;

  vdev = matching "xvd[a-z]" "a virtual disk: xvda to xvdz";
  # A target stands in a list of the configuration, between commas.
  target = matching "/[^\n\r\t,\"'\\\\]*" "an absolute path without commas, quotes and backslashes";
  volume = matching "(/[^\n\r\t,\"'\\\\]*)?/[A-Za-z0-9][A-Za-z0-9._-]*[.]raw|/dev/[^\n\r\t,\"'\\\\]+" "a volume, FOLDER/NAME.raw, or a block device below /dev";
  fileSystem = matching "ext4|xfs|btrfs" "a file system: ext4, xfs or btrfs";
  bridge = matching "[A-Za-z][A-Za-z0-9_.-]{0,14}" "the name of an interface: at most 15 letters, digits, '_', '.' and '-'";
  mac = matching "00:16:3e(:[0-9a-f]{2}){3}" "a MAC address of Xen's: 00:16:3e:xx:xx:xx";
  ipv4 = matching ipv4 "an IPv4 address: 10.137.0.7";
  prefix = matching "${ipv4}/([89]|1[0-9]|2[0-8])" "a range of IPv4 addresses: 10.137.0.0/16; a length of 8 to 28";
  pci = matching "([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}[.][0-7]" "a PCI address: 0000:03:00.0";
  capability = matching "CAP_[A-Z_]+" "a capability: CAP_NET_BIND_SERVICE";
  file = matching "[a-z0-9_][a-z0-9_.-]*[.]policy" "the name of a policy file: lower-case letters, digits, '_', '.' and '-', then .policy";

  # Who may stand in a rule.
  source = matching "[*]|@[a-z]+(:[A-Za-z0-9@_.:-]+)?|${name}(:([*]|${name}))?"
    "somebody of a policy: QUBE, QUBE:CONTAINER, QUBE:*, *, @anyvm, @tag:TAG, …";
  callee = matching "@dispvm(:${name})?|dom0|${name}(:${name})?|:${name}"
    "whom a call can go to: QUBE, QUBE:CONTAINER, :CONTAINER of the same qube, @dispvm, @dispvm:QUBE or dom0";
}
