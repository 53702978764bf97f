//! A network of hosts on this machine that can be divided: a network namespace for each host. Only root may create one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use crate::shell::Shell;

/// Port of the server of each host.
const PORT: u16 = 27_017;

/// Creates the network and removes it when the test process ends. The bridge has a namespace of its own, so that no firewall rule of
/// this machine applies to it.
///
/// Two hosts are cut by a wrong hardware address for each other, permanent in the tables of both: packets are sent and no interface
/// takes them, as on a broken cable. A link that is down would cut a host from every other one, and a route without a target would
/// tell the sender at once.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
net=$1 subnet=$2 hosts=$3 created=
# The test is host 1, in the namespace of the machine.
on() {
  host=$1; shift
  if [ "$host" = 1 ]; then ip "$@" dev "$net"; else ip -n "$net-$host" "$@" dev eth0; fi
}
create() {
  ip netns add "$net" || return
  created=yes
  ip -n "$net" link add bridge type bridge &&
    ip -n "$net" link set bridge up &&
    ip link add "$net" type veth peer name host1 netns "$net" &&
    ip -n "$net" link set host1 master bridge up &&
    ip link set "$net" up &&
    on 1 address add "$subnet.1/24" || return
  for n in $hosts; do
    ip netns add "$net-$n" &&
      ip link add eth0 netns "$net-$n" type veth peer name "host$n" netns "$net" &&
      ip -n "$net" link set "host$n" master bridge up &&
      ip -n "$net-$n" link set lo up &&
      ip -n "$net-$n" link set eth0 up &&
      on "$n" address add "$subnet.$n/24" || return
  done
}
remove() {
  for n in $hosts; do ip netns delete "$net-$n"; done
  ip link delete "$net"
  ip netns delete "$net"
}
block() { on "$1" neighbour replace "$subnet.$2" lladdr 02:00:00:00:00:01 nud permanent; }
heal() {
  for n in 1 $hosts; do on "$n" neighbour flush nud permanent || return; done
}
while read -r command one other; do
  case $command in
    create) create ;;
    cut) block "$one" "$other" && block "$other" "$one" ;;
    heal) heal ;;
  esac && echo yes || echo no
done
[ -z "$created" ] || remove 2>/dev/null
"#;

/// A host of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// The test and the processes that it starts.
    Test,
    /// The server with this number.
    Server(usize),
}

impl Host {
    /// The last part of its address.
    fn number(self) -> usize {
        match self {
            Self::Test => 1,
            Self::Server(n) => n + 2,
        }
    }
}

/// Hosts that reach each other, and the test. Removed when it is dropped, and when the test process is killed.
#[derive(Debug)]
pub(crate) struct TestNetwork {
    /// Of all addresses `10.77.N.x` and all names on this machine.
    number: u8,
    shell: Mutex<Shell>,
}

impl TestNetwork {
    /// Creates a network with this many hosts apart from the test.
    ///
    /// # Panics
    /// When that is not permitted, or the program `ip` is missing.
    pub(crate) fn start(servers: usize) -> Self {
        // Another test process may have a network of the same number.
        let started =
            std::iter::repeat_with(|| Self::new(servers)).take(5).find(|network| network.send("create"));
        started.unwrap_or_else(|| {
            panic!(
                "cannot create a network namespace (see above): run the test as root, with `ip` of iproute2"
            )
        })
    }

    fn new(servers: usize) -> Self {
        let number = crate::random();
        let hosts: Vec<String> = (0..servers).map(|n| Host::Server(n).number().to_string()).collect();
        let arguments = [name(number), format!("10.77.{number}"), hosts.join(" ")];
        Self { number, shell: Mutex::new(Shell::new(SUPERVISOR, |sh| _ = sh.args(arguments))) }
    }

    /// Returns the address of a server and its namespace.
    pub(crate) fn place(&self, n: usize) -> (SocketAddr, String) {
        let host = Host::Server(n).number();
        let last = u8::try_from(host).expect("a network has few hosts");
        let address = Ipv4Addr::new(10, 77, self.number, last);
        ((address, PORT).into(), format!("{}-{host}", name(self.number)))
    }

    /// Lets no packet pass between these two.
    pub(crate) fn cut(&self, one: Host, other: Host) {
        let command = format!("cut {} {}", one.number(), other.number());
        assert!(self.send(&command), "{command} failed");
    }

    /// Lets every packet pass.
    pub(crate) fn heal(&self) {
        assert!(self.send("heal"), "the network cannot be healed");
    }

    fn send(&self, command: &str) -> bool {
        self.shell.lock().expect("no test panics while it holds this").send(command)
    }
}

fn name(number: u8) -> String {
    format!("kinsync{number}")
}
