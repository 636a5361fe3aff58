# Asks the routers of a network for name servers, once: for a VM without an IPv4 lease, which has told it none. Run by `dhcp`.
#
# The kernel takes addresses and routes from router advertisements by itself, and leaves the options that are for programs
# (RFC 8106) alone. This sends one solicitation (RFC 4861 §4.1), waits a moment for an advertisement with such options, and
# prints the lines of resolv.conf; it ends with 1 when none came. perl's interpreter alone, as for agent.pl.
my ($nic) = @ARGV;
# bits/socket.h, netinet/in.h, linux/in6.h
my ($AF_INET6, $SOCK_RAW, $ICMPV6, $SOL_SOCKET, $SO_BINDTODEVICE, $IPV6, $MULTICAST_HOPS) = (10, 3, 58, 1, 25, 41, 18);
my ($SOLICITATION, $ADVERTISEMENT, $RDNSS, $DNSSL) = (133, 134, 25, 31);
my ($TRIES, $WAIT, $MAX_SERVERS, $MAX_DOMAINS) = (2, 1.5, 3, 6);

open my $f, '<', "/sys/class/net/$nic/ifindex" or exit 1;
my $index = <$f>;
socket my $s, $AF_INET6, $SOCK_RAW, $ICMPV6 or exit 1;
setsockopt $s, $SOL_SOCKET, $SO_BINDTODEVICE, "$nic\0" or exit 1;
# RFC 4861 §6.1.1: another hop limit is not listened to.
setsockopt $s, $IPV6, $MULTICAST_HOPS, pack('i', 255) or exit 1;
my $routers = pack 'S n N a16 L', $AF_INET6, 0, 0, pack('H*', 'ff02' . '0' x 27 . '2'), $index;

for (1 .. $TRIES) {
  send $s, pack('C C n N', $SOLICITATION, 0, 0, 0), 0, $routers;
  my $end = time + 1 + int $WAIT;
  while (time < $end) {
    my $ready = '';
    vec($ready, fileno $s, 1) = 1;
    next if select($ready, undef, undef, $WAIT) < 1;
    my $from = recv $s, my $message, 2048, 0;
    next if !defined $from || length $message < 16 || ord $message != $ADVERTISEMENT;
    # Of a router, which has a link-local address.
    next if (unpack('n', substr $from, 8, 2) & 0xffc0) != 0xfe80;
    answer($message);
  }
}
exit 1;

sub answer {
  my ($message) = @_;
  my (@servers, @domains);
  for (my $at = 16; $at + 8 <= length $message;) {
    my ($type, $units, undef, $lifetime) = unpack 'C C n N', substr $message, $at, 8;
    return if $units == 0 || $at + 8 * $units > length $message;
    my $body = substr $message, $at + 8, 8 * $units - 8;
    if ($lifetime > 0 && $type == $RDNSS) { push @servers, unpack '(a16)*', $body }
    elsif ($lifetime > 0 && $type == $DNSSL) { push @domains, domains($body) }
    $at += 8 * $units;
  }
  @servers = grep { length == 16 && ord != 0xff } @servers;
  return if @servers == 0;
  splice @servers, $MAX_SERVERS if @servers > $MAX_SERVERS;
  splice @domains, $MAX_DOMAINS if @domains > $MAX_DOMAINS;
  for (@servers) {
    my $text = join ':', map { sprintf '%x', $_ } unpack 'n8', $_;
    # A server on the link needs the nic with its address.
    print "nameserver $text", ((unpack('n', $_) & 0xffc0) == 0xfe80 ? "%$nic" : ''), "\n";
  }
  print "search @domains\n" if @domains;
  exit 0;
}

# Names as in DNS, without compression, padded with zeros; RFC 8106 §5.2. Only what may stand in a file is let through.
sub domains {
  my ($body) = @_;
  my (@names, @labels);
  while (length $body) {
    my $length = ord $body;
    last if $length > 63 || $length >= length $body;
    my $label = substr $body, 1, $length;
    substr($body, 0, 1 + $length) = '';
    if ($length > 0) {
      return @names if $label !~ /^[A-Za-z0-9_-]+$/;
      push @labels, $label;
    } elsif (@labels) {
      push @names, join '.', @labels;
      @labels = ();
    }
  }
  return @names;
}
