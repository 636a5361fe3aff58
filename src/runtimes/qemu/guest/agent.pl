#!/usr/bin/perl
# noid's agent in a guest: commands, their streams and a few questions over one virtio-serial port, never over the network.
#
# Needs perl's interpreter and nothing besides: no module (strict is taken when it is there), no compiler, nothing of the
# image. It is started by the init in the initrd as
#     LD --library-path DIR PERL agent.pl [DEVICE | --port NAME | --fd N]
# (default: --port noid.agent.0, looked up in /sys/class/virtio-ports; DEVICE may appear later). It is root's.
#
# The wire (../agent/protocol.ts says it from the other side). All numbers are big endian.
#   frame    epoch[8] type(u8) 0(u8) stream(u16) length(u32) payload epoch[8]
#   HELLO    "noid-agent-hello" epoch[8] version(u16)      host → guest, begins a conversation
#   WELCOME  "noid-agent-reply" epoch[8] version(u16)      guest → host
# The port has no beginning and no end of its own: a host that dies in the middle of a frame leaves half of it behind, and
# the next one may be there before that is noticed. So the epoch, 8 random bytes of the host's choice, stands before and
# behind each frame: what does not begin and end with it is no frame, ends the conversation (SIGHUP for its commands), and
# what follows is searched for a HELLO. Nothing that was cut is ever delivered.
#
# Flow control is by credit, in bytes, apart for stdin, stdout and stderr of each command: a stalled one stops itself only.
# Invariants: one select loop, no busy waiting (while no host is there the port reads 0 bytes for ever: it is left out, and
# asked again at SIGIO or each second); memory is bounded by WINDOW for each stream and HIGH for the port.
BEGIN { $^W = 0; eval { require strict; strict->import(); 1 } }

my $VERSION = 1;
my ($HELLO, $WELCOME) = ('noid-agent-hello', 'noid-agent-reply');
my ($MAX_SESSIONS, $MAX_CALLS) = (128, 16);
my ($WINDOW, $CHUNK, $HIGH) = (256 * 1024, 32 * 1024, 256 * 1024);
my ($MAX_DATA, $MAX_CONTROL) = (64 * 1024, 1088 * 1024);
# How long a command's output may stay silent, and open, after the command ended.
my $LINGER = 0.25;
# A frame that does not arrive in this time may be the rest of one whose host died.
my $STALL = 0.3;

# host → guest
my ($EXEC, $STDIN, $STDIN_END, $SIGNAL, $RESIZE, $CREDIT, $CLOSE, $CALL) = (1 .. 8);
# guest → host
my ($STARTED, $FAILED, $STDOUT, $STDERR, $END, $EXIT, $GRANT, $REPLY) = (32 .. 39);

# asm/unistd_64.h and asm-generic/unistd.h
my %SYS = (
  x86_64 => {
    exit => 231, setsid => 112, dup3 => 292, setgroups => 116, setresgid => 119, setresuid => 117, reboot => 169,
    settime => 227, sync => 162, mount => 165,
  },
  aarch64 => {
    exit => 94, setsid => 157, dup3 => 24, setgroups => 159, setresgid => 149, setresuid => 147, reboot => 142,
    settime => 112, sync => 81, mount => 40,
  },
);
my $machine = $ENV{NOID_MACHINE} || machine();
my $sys = $SYS{$machine} or die "noid-agent: no system call numbers for $machine\n";

my %SIGNALS = (
  HUP => 1, INT => 2, QUIT => 3, ILL => 4, TRAP => 5, ABRT => 6, IOT => 6, BUS => 7, FPE => 8, KILL => 9, USR1 => 10,
  SEGV => 11, USR2 => 12, PIPE => 13, ALRM => 14, TERM => 15, STKFLT => 16, CHLD => 17, CONT => 18, STOP => 19,
  TSTP => 20, TTIN => 21, TTOU => 22, URG => 23, XCPU => 24, XFSZ => 25, VTALRM => 26, PROF => 27, WINCH => 28, IO => 29,
  PWR => 30, SYS => 31,
);

# fcntl.h, asm-generic/ioctls.h, linux/random.h, linux/sockios.h
my ($O_RDWR, $O_NOCTTY, $O_NONBLOCK, $O_ASYNC, $O_CLOEXEC) = (2, 0400, 04000, 020000, 02000000);
my ($F_GETFL, $F_SETFL, $F_SETOWN) = (3, 4, 8);
my ($TIOCSPTLCK, $TIOCGPTPEER, $TIOCSWINSZ, $TIOCSCTTY, $TIOCGPGRP) = (0x40045431, 0x5441, 0x5414, 0x540E, 0x540F);
my ($RNDADDENTROPY, $RNDRESEEDCRNG) = (0x40085203, 0x5207);
my ($SIOCGIFFLAGS, $SIOCSIFFLAGS, $SIOCGIFADDR, $SIOCSIFHWADDR) = (0x8913, 0x8914, 0x8915, 0x8924);

my ($EAGAIN, $EINTR, $ENOENT, $ENODEV) = (11, 4, 2, 19);
# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
my ($AF_INET6, $AF_NETLINK, $RTM_NEWADDR, $RTM_DELADDR, $IFA_ADDRESS, $IFA_F_NODAD) = (10, 16, 20, 21, 1, 2);
my ($NLM_F_REQUEST, $NLM_F_ACK, $NLM_F_REPLACE, $NLM_F_CREATE) = (1, 4, 0x100, 0x400);

my ($BUSYBOX, $IDENTITY, $FILES, $INET6) = map { "/run/noid/$_" } 'busybox', 'identity', 'files', 'inet6';
my ($IPV6_ONLY, $DHCP_PID) = ('/run/noid/ipv6-only', '/run/noid/dhcp.pid');
# How long the first router advertisement is waited for.
my $ROUTER = 3;
my $VM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

my $port;             # the channel
my $ends = 0;         # its end is the agent's end (--fd), not a host that left
my $down = 0;         # no host is connected
my $epoch = '';       # of the conversation; empty while there is none
my ($in, $out) = ('', '');
my $partial = 0;      # since when the beginning of a frame waits for its rest
my %session;          # stream → command
my %by_pid;
my %call;             # stream → what a worker has answered so far
my $turn = 0;         # whose output is read first: each round another's
my ($child_ended, $child_waker);

main();

# -- the port ------------------------------------------------------------------------------------------------------------
sub main {
  # 0, 1 and 2 must be something: what is opened below would be taken for them.
  open(STDIN, '<', '/dev/null');
  defined(fileno(STDOUT)) or open(STDOUT, '>', '/dev/null');
  defined(fileno(STDERR)) or open(STDERR, '>', '/dev/null');
  open_port(@ARGV);
  # Another agent may have died here in the middle of a frame, and its host still waits: this ends whatever it waits for.
  $out = "\0" x ($MAX_DATA + 64);
  pipe($child_ended, $child_waker) or die "noid-agent: pipe: $!\n";
  nonblocking($_) for $child_ended, $child_waker;
  $SIG{PIPE} = 'IGNORE';
  $SIG{CHLD} = sub { syswrite($child_waker, 'x') };
  $SIG{IO} = sub { };
  $SIG{$_} = 'IGNORE' for 'HUP', 'INT', 'TTOU', 'TTIN';
  # Memory that runs short is the commands', not the way in.
  write_file('/proc/self/oom_score_adj', '-900') if $> == 0;
  turn_around() while 1;
}

sub open_port {
  my %o = @_ == 1 ? ('device', @_) : @_;
  if (defined $o{'--fd'}) {
    open($port, '+<&=', $o{'--fd'}) or die "noid-agent: descriptor $o{'--fd'}: $!\n";
    $ends = 1;
  } else {
    my $path;
    for (my $i = 0; ; $i++) {
      $path = defined $o{device} ? $o{device} : find_port($o{'--port'} || 'noid.agent.0');
      last if defined $path && sysopen($port, $path, $O_RDWR | $O_NONBLOCK | $O_NOCTTY);
      # A port's name can appear after its driver is loaded.
      die "noid-agent: there is no port\n" if $i > 3000;
      select(undef, undef, undef, $i < 200 ? 0.01 : 0.1);
    }
    fcntl($port, $F_SETOWN, $$ + 0);
  }
  nonblocking($port);
}

sub find_port {
  my ($name) = @_;
  opendir(my $dir, '/sys/class/virtio-ports') or return undef;
  for my $p (grep { /^vport\w+$/ } readdir $dir) {
    my $n = read_file("/sys/class/virtio-ports/$p/name");
    chomp $n;
    next if $n ne $name;
    return "/dev/$p" if -e "/dev/$p";
  }
  return undef;
}

sub nonblocking {
  my ($fh) = @_;
  my $flags = fcntl($fh, $F_GETFL, 0);
  fcntl($fh, $F_SETFL, ($flags + 0) | $O_NONBLOCK);
}

# SIGIO while nobody is connected, and only then: it says that somebody came.
sub host_left {
  return if $down;
  exit 0 if $ends;
  $down = 1;
  conversation_ends();
  ($in, $out, $partial) = ('', '', 0);
  my $flags = fcntl($port, $F_GETFL, 0);
  fcntl($port, $F_SETFL, ($flags + 0) | $O_ASYNC);
}

sub host_came {
  return if !$down;
  $down = 0;
  my $flags = fcntl($port, $F_GETFL, 0);
  fcntl($port, $F_SETFL, ($flags + 0) & ~$O_ASYNC);
}

sub frame {
  my ($type, $stream, $payload) = @_;
  return if $epoch eq '';
  $out .= $epoch . pack('CxnN', $type, $stream, length $payload) . $payload . $epoch;
}

sub flush_port {
  while (length $out) {
    my $n = syswrite($port, $out, $CHUNK);
    if (!defined $n) {
      return if $! == $EAGAIN || $! == $EINTR;
      return host_left();
    }
    substr($out, 0, $n, '');
    return if $n < $CHUNK;
  }
}

sub read_port {
  # The port gives a page at a time: taken together, frames are cut once.
  my $got = 0;
  while ($got < $HIGH) {
    my $n = sysread($port, $in, 65536, length $in);
    if (!defined $n) {
      last if $! == $EINTR;
      if ($! == $EAGAIN) { host_came(); last }
    }
    if (!$n) {
      take_frames() if $got;
      return host_left();
    }
    $got += $n;
  }
  host_came() if $got;
  take_frames() if $got;
}

# -- frames --------------------------------------------------------------------------------------------------------------
sub take_frames {
  my $at = 0;
  while (1) {
    my $have = length($in) - $at;
    if ($epoch eq '' || ($have >= 16 && substr($in, $at, 16) eq $HELLO)) {
      # A HELLO in its place, or the search for one.
      my $found = index($in, $HELLO, $at);
      if ($found < 0) {
        $at = length($in) - 15 if $have > 15;
        last;
      }
      if (length($in) - $found < 26) { $at = $found; last }
      welcome(substr($in, $found + 16, 8));
      $at = $found + 26;
      next;
    }
    last if $have < 16;
    my ($e, $type, $stream, $length) = unpack('a8CxnN', substr($in, $at, 16));
    if ($e ne $epoch || $length > ($type == $EXEC || $type == $CALL ? $MAX_CONTROL : $MAX_DATA)) {
      conversation_ends();
      next;
    }
    last if $have < 24 + $length;
    if (substr($in, $at + 16 + $length, 8) ne $epoch) {
      conversation_ends();
      $at += 1;
      next;
    }
    obey($type, $stream, substr($in, $at + 16, $length));
    $at += 24 + $length;
  }
  substr($in, 0, $at, '') if $at > 0;
  $partial = length($in) && $epoch ne '' ? ($at > 0 || !$partial ? now() : $partial) : 0;
}

# The beginning of a frame, and at the very end a HELLO: the host that sent the beginning is dead.
sub look_for_host {
  my $found = length($in) - 26;
  if ($found > 0 && substr($in, $found, 16) eq $HELLO) {
    substr($in, 0, $found, '');
    conversation_ends();
    take_frames();
  } else {
    $partial = now();
  }
}

sub welcome {
  my ($e) = @_;
  if ($e ne $epoch) {
    conversation_ends();
    # Half a frame of the old one may be on its way: the host searches for the WELCOME.
    $out = '';
    $epoch = $e;
  }
  $out .= $WELCOME . $epoch . pack('n', $VERSION);
}

sub conversation_ends {
  $epoch = '';
  for my $s (values %session) {
    $s->{silent} = 1;
    hang_up($s);
  }
  %session = ();
  for my $c (values %call) { close $c->{fh} }
  %call = ();
}

sub obey {
  my ($type, $stream, $p) = @_;
  my $s = $session{$stream};
  if ($type == $STDIN) {
    return if !$s || !$s->{in};
    return conversation_ends() if ($s->{room} -= length $p) < 0;
    $s->{held} .= $p;
    feed($s);
  } elsif ($type == $STDIN_END) {
    return if !$s || !$s->{in};
    # A terminal has no half-close: the line discipline's end-of-file character says it.
    if ($s->{tty}) { $s->{held} .= "\x04"; $s->{owed}-- }
    $s->{held_ends} = 1;
    feed($s);
  } elsif ($type == $CREDIT) {
    return conversation_ends() if length($p) != 5;
    my ($which, $n) = unpack('CN', $p);
    return if !$s;
    return conversation_ends() if $which < 1 || $which > 2 || ($s->{credit}[$which] += $n) > $WINDOW;
  } elsif ($type == $EXEC) {
    return conversation_ends() if $s;
    execute($stream, $p);
  } elsif ($type == $SIGNAL) {
    $p =~ s/^SIG//;
    signal($s, $SIGNALS{$p}) if $s && $SIGNALS{$p};
  } elsif ($type == $RESIZE) {
    return conversation_ends() if length($p) != 4;
    ioctl($s->{out}, $TIOCSWINSZ, pack('S4', unpack('nn', $p), 0, 0)) if $s && $s->{tty} && $s->{out};
  } elsif ($type == $CLOSE) {
    return if !$s;
    $s->{silent} = 1;
    hang_up($s);
    delete $session{$stream};
  } elsif ($type == $CALL) {
    answer($stream, $p);
  } else {
    conversation_ends();
  }
}

# -- the loop ------------------------------------------------------------------------------------------------------------
sub turn_around {
  my ($r, $w, $wait) = ('', '', undef);
  my $pfd = fileno($port);
  my $full = length($out) >= $HIGH;
  vec($r, fileno($child_ended), 1) = 1;
  if ($down) { $wait = 1 }
  else {
    vec($r, $pfd, 1) = 1 if length($out) < 4 * $HIGH;
    vec($w, $pfd, 1) = 1 if length $out;
    $wait = $STALL if $partial;
  }
  my $now = 0;
  for my $s (values %session) {
    if (!$full) {
      vec($r, fileno($s->{out}), 1) = 1 if $s->{out} && $s->{credit}[1] > 0;
      vec($r, fileno($s->{err}), 1) = 1 if $s->{err} && $s->{credit}[2] > 0;
    }
    vec($w, fileno($s->{in}), 1) = 1 if $s->{in} && length $s->{held};
    if ($s->{ended} && ($s->{out} || $s->{err})) {
      $now ||= now();
      my $left = $s->{linger} - $now;
      $left = 0 if $left < 0;
      $wait = $left if !defined $wait || $left < $wait;
    }
  }
  vec($r, fileno($_->{fh}), 1) = 1 for values %call;

  my ($rr, $ww) = ($r, $w);
  my $n = select($rr, $ww, undef, $wait);
  return if $n < 0 && $! != $EINTR && do { select(undef, undef, undef, 0.05); 1 };
  ($rr, $ww) = ('', '') if $n <= 0;

  if (vec($rr, fileno($child_ended), 1)) {
    sysread($child_ended, my $x, 512);
    reap();
  }
  if ($down || vec($rr, $pfd, 1)) { read_port() }
  elsif ($partial && now() - $partial >= $STALL) { look_for_host() }
  my @streams = sort { $a <=> $b } keys %session;
  $turn++;
  for my $i (0 .. $#streams) {
    my $s = $session{ $streams[($i + $turn) % @streams] } or next;
    feed($s) if $s->{in} && vec($ww, fileno($s->{in}), 1);
    for my $which (1, 2) {
      my $fh = $which == 1 ? $s->{out} : $s->{err};
      drain($s, $which, $fh) if $fh && vec($rr, fileno($fh), 1) && $s->{credit}[$which] > 0;
    }
  }
  linger();
  for my $id (keys %call) { collect($id) if $call{$id} && vec($rr, fileno($call{$id}{fh}), 1) }
  flush_port() if length $out && !$down;
}

# Output of a command → frames, as far as its credit reaches.
sub drain {
  my ($s, $which, $fh) = @_;
  my $most = $s->{credit}[$which];
  $most = $CHUNK if $most > $CHUNK;
  my $n = sysread($fh, my $data, $most);
  if ($n) {
    $s->{credit}[$which] -= $n;
    $s->{linger} = now() + $LINGER if $s->{ended};
    frame($which == 1 ? $STDOUT : $STDERR, $s->{id}, $data);
  } elsif (defined $n || ($! != $EAGAIN && $! != $EINTR)) {
    # EIO: nobody has the other end of the terminal any more.
    output_ends($s, $which);
  }
}

sub output_ends {
  my ($s, $which) = @_;
  if ($which == 1) {
    if ($s->{tty}) { input_ends($s) }
    close(delete $s->{out});
  } else {
    close(delete $s->{err});
  }
  frame($END, $s->{id}, pack('C', $which));
  forget($s);
}

# What was sent → stdin of the command; what it took is credit again.
sub feed {
  my ($s) = @_;
  while (length $s->{held}) {
    my $n = syswrite($s->{in}, $s->{held}, $CHUNK);
    if (!defined $n) {
      return if $! == $EAGAIN || $! == $EINTR;
      return input_ends($s);
    }
    substr($s->{held}, 0, $n, '');
    $s->{owed} += $n;
    if ($s->{owed} >= $WINDOW / 4 || !length $s->{held}) {
      frame($GRANT, $s->{id}, pack('N', $s->{owed})) if $s->{owed};
      $s->{room} += $s->{owed};
      $s->{owed} = 0;
    }
  }
  return if !$s->{held_ends} || $s->{tty};
  close(delete $s->{in});
}

# The command takes no more.
sub input_ends {
  my ($s) = @_;
  return if !$s->{in};
  my $fh = delete $s->{in};
  close $fh if !$s->{tty};
  $s->{held} = '';
  frame($END, $s->{id}, pack('C', 0));
}

sub reap {
  while ((my $pid = waitpid(-1, 1)) > 0) {
    my $status = $?;
    my $s = delete $by_pid{$pid} or next;
    $s->{ended} = 1;
    $s->{linger} = now() + $LINGER;
    next if $s->{silent};
    frame($EXIT, $s->{id}, pack('N', $status & 127 ? 128 + ($status & 127) : $status >> 8));
    input_ends($s) if !$s->{tty};
    forget($s);
  }
}

# Something in the background may keep the output of an ended command open for ever.
sub linger {
  my $now;
  for my $s (values %session) {
    next if !$s->{ended};
    $now ||= now();
    for my $which (1, 2) {
      my $fh = $which == 1 ? $s->{out} : $s->{err};
      next if !$fh;
      if ($s->{credit}[$which] <= 0) { $s->{linger} = $now + $LINGER; next }    # The reader is slow, not the writer.
      output_ends($s, $which) if $s->{linger} <= $now;
    }
  }
}

sub forget {
  my ($s) = @_;
  return if !$s->{ended} || $s->{out} || $s->{err};
  delete $session{ $s->{id} };
}

# To who is in front of the terminal, or to the command and what it started.
sub signal {
  my ($s, $n) = @_;
  return if $s->{ended};
  if ($s->{tty} && $s->{out}) {
    my $group = pack('i', 0);
    if (ioctl($s->{out}, $TIOCGPGRP, $group)) {
      my $g = unpack('i', $group);
      return if $g > 1 && kill($n, -$g);
    }
  }
  kill($n, -$s->{pid}) or kill($n, $s->{pid});
}

sub hang_up {
  my ($s) = @_;
  signal($s, 1);
  # A stopped process hears nothing.
  signal($s, 18);
  for my $k ('in', 'out', 'err') { my $fh = delete $s->{$k}; close $fh if $fh && !($k eq 'in' && $s->{tty}) }
}

# -- commands ------------------------------------------------------------------------------------------------------------
# flags(u8: 1 terminal) rows(u16) cols(u16) count of variables(u32), then texts: user, directory, K=V..., argv...
sub execute {
  my ($id, $p) = @_;
  my $fail = sub { frame($FAILED, $id, $_[0]) };
  return $fail->('the request is cut off') if length($p) < 9;
  my ($flags, $rows, $cols, $vars, @text) = unpack('CnnN(N/a*)*', $p);
  return $fail->('the request is cut off') if $vars > 65536 || @text < 3 + $vars;
  return $fail->("it runs $MAX_SESSIONS commands already") if keys(%session) >= $MAX_SESSIONS;
  my ($who, $dir) = (shift @text, shift @text);
  my %env = map { /^([^=]+)=(.*)$/s ? ($1, $2) : () } splice(@text, 0, $vars);
  my $user = find_user($who eq '' ? 'root' : $who);
  if (!$user) {
    return $fail->("it has no user \"$who\"") if $who ne '';
    $user = { name => 'root', uid => 0, gid => 0, home => '/root', groups => [0] };
  }

  my $s = {
    id => $id, tty => $flags & 1, held => '', owed => 0, room => $WINDOW, credit => [0, $WINDOW, $WINDOW], linger => 0,
  };
  my @theirs;
  if ($s->{tty}) {
    my $slave = terminal($s, $rows, $cols);
    return $fail->("no terminal: $!") if !$slave;
    chown $user->{uid}, -1, $slave;
    @theirs = ($slave, $slave, $slave);
  } else {
    my @pairs;
    for (0 .. 2) {
      pipe(my $from, my $to) or return $fail->("no pipe: $!");
      push @pairs, [$from, $to];
    }
    @theirs = ($pairs[0][0], $pairs[1][1], $pairs[2][1]);
    # /dev/stdin and its like open the pipe again: it must belong to who runs inside.
    if ($user->{uid}) { chown $user->{uid}, $user->{gid}, $_ for @theirs }
    ($s->{in}, $s->{out}, $s->{err}) = ($pairs[0][1], $pairs[1][0], $pairs[2][0]);
  }
  nonblocking($_) for grep { $_ } @$s{ 'in', 'out', 'err' };

  my $pid = fork();
  return $fail->("no process: $!") if !defined $pid;
  become($s, $user, $dir, \%env, \@text, @theirs) if $pid == 0;
  close $_ for @theirs;
  $s->{pid} = $pid;
  $by_pid{$pid} = $session{$id} = $s;
  frame($STARTED, $id, pack('N', $pid));
}

# A pair of the guest's own devpts; the other end comes from the master itself, never from a path.
sub terminal {
  my ($s, $rows, $cols) = @_;
  my $master;
  sysopen($master, '/dev/ptmx', $O_RDWR | $O_NOCTTY)
    or sysopen($master, '/dev/pts/ptmx', $O_RDWR | $O_NOCTTY)
    or return undef;
  my $zero = pack('i', 0);
  ioctl($master, $TIOCSPTLCK, $zero) or return undef;
  my $fd = ioctl($master, $TIOCGPTPEER, ($O_RDWR | $O_NOCTTY | $O_CLOEXEC) + 0);
  return undef if !defined $fd;
  open(my $slave, '+<&=', $fd + 0) or return undef;
  ioctl($master, $TIOCSWINSZ, pack('S4', $rows, $cols, 0, 0)) if $rows && $cols;
  ($s->{in}, $s->{out}) = ($master, $master);
  return $slave;
}

# In the child: never returns.
sub become {
  my ($s, $user, $dir, $env, $argv, @theirs) = @_;
  $SIG{$_} = 'DEFAULT' for 'PIPE', 'CHLD', 'IO', 'HUP', 'INT', 'TERM', 'TTOU', 'TTIN';
  syscall($sys->{setsid});
  for my $i (0 .. 2) { syscall($sys->{dup3}, fileno($theirs[$i]), $i, 0) }
  ioctl(STDIN, $TIOCSCTTY, 0) if $s->{tty};
  if ($> == 0) {
    write_file('/proc/self/oom_score_adj', '0');
    my @g = @{ $user->{groups} };
    syscall($sys->{setgroups}, scalar(@g) + 0, pack('L*', @g)) if $user->{uid} || @g > 1;
    syscall($sys->{setresgid}, ($user->{gid} + 0) x 3);
    if ($user->{uid} && syscall($sys->{setresuid}, ($user->{uid} + 0) x 3) != 0) {
      complain("noid: the user $user->{name} cannot be taken on: $!", 126);
    }
  }
  my $path = defined $env->{PATH} ? $env->{PATH} : $VM_PATH;
  my $host = read_file('/proc/sys/kernel/hostname');
  chomp $host;
  %ENV = (
    HOME => $user->{home}, USER => $user->{name}, LOGNAME => $user->{name}, HOSTNAME => $host, LANG => 'C.UTF-8',
    ($s->{tty} ? (TERM => 'xterm-256color') : ()), %$env, PATH => $path,
  );
  if ($dir eq '') { chdir($ENV{HOME}) or chdir('/') }
  elsif (!chdir($dir)) {
    complain("noid: the directory $dir " . (-e $dir ? 'cannot be entered' : 'does not exist') . ' in this VM', 126);
  }
  umask 022;
  exec { $argv->[0] } @$argv;
  my $why = $!;
  my $absent = $why == $ENOENT && !($argv->[0] =~ m{/} && -e $argv->[0]);
  complain("noid: $argv->[0]: command not found in this VM", 127) if $absent;
  complain("noid: $argv->[0] cannot be executed in this VM: $why", 126);
}

sub complain {
  my ($text, $code) = @_;
  syswrite(STDERR, "$text\n");
  syscall($sys->{exit}, $code + 0);
}

# NAME, UID, NAME:GROUP or UID:GID, by the guest's own files and without its libraries.
sub find_user {
  my ($spec) = @_;
  my ($who, $group) = split(/:/, $spec, 2);
  $who = '' if !defined $who;
  my @rows = map { [split(/:/, $_, -1)] } split(/\n/, read_file('/etc/passwd'));
  my ($row) = grep { $_->[0] eq $who } @rows;
  ($row) = grep { defined $_->[2] && $_->[2] eq $who } @rows if !$row;
  return undef if !$row && $who !~ /^\d{1,9}$/;
  my @groups = map { [split(/:/, $_, -1)] } split(/\n/, read_file('/etc/group'));
  my $uid = $row ? $row->[2] : $who;
  my $gid = $row ? $row->[3] : $who;
  my $name = $row ? $row->[0] : $who;
  if (defined $group) {
    my ($g) = grep { $_->[0] eq $group || (defined $_->[2] && $_->[2] eq $group) } @groups;
    return undef if !$g && $group !~ /^\d{1,9}$/;
    $gid = $g ? $g->[2] : $group;
  }
  return undef if $uid !~ /^\d+$/ || $gid !~ /^\d+$/;
  my @also = grep { /^\d+$/ } map { $_->[2] }
    grep { my $g = $_; grep { $_ eq $name } split(/,/, defined $g->[3] ? $g->[3] : '') } @groups;
  return {
    name => $name, uid => $uid + 0, gid => $gid + 0, home => $row && $row->[5] ? $row->[5] : '/',
    groups => [$gid + 0, map { $_ + 0 } @also],
  };
}

# -- questions and orders ------------------------------------------------------------------------------------------------
# Texts: name, then key, value, key, value ...; the answer is a REPLY: 1 and key, value ..., or 0 and a sentence.
sub answer {
  my ($id, $p) = @_;
  my ($name, @words) = unpack('(N/a*)*', $p);
  return reply($id, 1, info('nic', @words)) if $name eq 'info';
  my $does = { configure => \&configure, poweroff => \&poweroff }->{$name};
  return reply($id, 0, "it knows no \"$name\"") if !$does;
  return reply($id, 0, 'it is busy') if $call{$id} || keys(%call) >= $MAX_CALLS;
  pipe(my $from, my $to) or return reply($id, 0, "no pipe: $!");
  $SIG{TERM} = 'IGNORE' if $name eq 'poweroff';
  my $pid = fork();
  return reply($id, 0, "no process: $!") if !defined $pid;
  if ($pid == 0) {
    $SIG{$_} = 'DEFAULT' for 'CHLD', 'IO';
    close $port;
    my @r = eval { (1, $does->($to, @words)) };
    @r = (0, $@ =~ /^(.*)/ ? $1 : 'it failed') if !@r;
    syswrite($to, pack('C(N/a*)*', @r)) if @r;
    syscall($sys->{exit}, 0);
  }
  close $to;
  nonblocking($from);
  $call{$id} = { fh => $from, text => '' };
}

sub reply {
  my ($id, @r) = @_;
  frame($REPLY, $id, pack('C(N/a*)*', @r));
}

sub collect {
  my ($id) = @_;
  my $c = $call{$id};
  my $n = sysread($c->{fh}, $c->{text}, $MAX_DATA, length $c->{text});
  return if !defined $n && ($! == $EAGAIN || $! == $EINTR);
  return if $n && length $c->{text} < $MAX_DATA;
  close $c->{fh};
  delete $call{$id};
  return reply($id, 0, 'its answer was cut off') if !length $c->{text} || length $c->{text} > $MAX_DATA - 24;
  frame($REPLY, $id, $c->{text});
}

sub info {
  my (undef, %o) = @_;
  my $nic = $o{nic} || 'eth0';
  my ($up) = split(/ /, read_file('/proc/uptime'));
  my %i = (uptime => $up, address => ipv4($nic));
  for my $k ('hostname', 'osrelease') { $i{$k} = read_file("/proc/sys/kernel/$k"); chomp $i{$k} }
  $i{mac} = read_file("/sys/class/net/$nic/address");
  chomp $i{mac};
  my @six;
  for (split(/\n/, read_file('/proc/net/if_inet6'))) {
    my ($hex, undef, $prefix, $scope, $flags, $dev) = split(' ');
    # Tentative and failed ones (IFA_F_TENTATIVE, IFA_F_DADFAILED) are not usable.
    next if $dev ne $nic || hex($flags) & 0x48;
    push @six, join(':', $hex =~ /(.{4})/g) . '/' . hex($prefix);
  }
  $i{address6} = join(' ', @six);
  return map { ($_, $i{$_}) } sort keys %i;
}

sub ipv4 {
  my ($nic) = @_;
  socket(my $s, 2, 2, 0) or return '';
  my $r = pack('a16x24', $nic);
  ioctl($s, $SIOCGIFADDR, $r) or return '';
  return join('.', unpack('x20C4', $r));
}

# time seconds, seed bytes, families ("4", "6", "46"), address6 A/PREFIX and inet6 (lines for `files`), mac, hostname, renew (its lease is another's), file
# "MODE PATH\0TEXT" (any number), machineid, keys, mount "TAG\0TARGET\0ro|rw" (any number), run WORD (any number: one command), wait ms (for an address of the nic). In this order, whatever that of the words.
sub configure {
  my ($to, @words) = @_;
  my (%o, @files, @run, @mounts);
  while (my ($k, $v) = splice(@words, 0, 2)) {
    if ($k eq 'file') { push @files, $v }
    elsif ($k eq 'run') { push @run, $v }
    elsif ($k eq 'mount') { push @mounts, $v }
    else { $o{$k} = $v }
  }
  my $nic = $o{nic} || 'eth0';
  $ENV{PATH} = $VM_PATH;
  if (defined $o{time}) {
    my $whole = int($o{time});
    my $t = pack('qq', $whole, int(($o{time} - $whole) * 1e9));
    syscall($sys->{settime}, 0, $t) == 0 or die "the clock cannot be set: $!\n";
  }
  if (defined $o{seed}) {
    open(my $r, '>', '/dev/urandom') or die "no /dev/urandom: $!\n";
    my $entropy = pack('iia*', 8 * length($o{seed}), length($o{seed}), $o{seed});
    ioctl($r, $RNDADDENTROPY, $entropy) or die "the random pool cannot be fed: $!\n";
    ioctl($r, $RNDRESEEDCRNG, 0) or die "the random pool cannot be reseeded: $!\n";
  }
  # The init of the initrd has a program for who a VM is, which also makes its DHCP client begin anew.
  my $own = -e $IDENTITY && defined $o{hostname};
  my $former = former_address6();
  families($o{families}, $o{inet6}) if $own && defined $o{families};
  if (defined $o{mac}) { set_mac($nic, $o{mac}) }
  if ($own) {
    my $status = system { $BUSYBOX } $BUSYBOX, 'sh', $IDENTITY, $o{hostname}, ($o{renew} ? 'renew' : ());
    die "the name cannot be taken on ($status)\n" if $status != 0;
  } elsif (defined $o{hostname}) {
    my $old = read_file('/proc/sys/kernel/hostname');
    chomp $old;
    write_file('/proc/sys/kernel/hostname', $o{hostname}) or die "the host name cannot be set: $!\n";
    replace_file('/etc/hostname', "$o{hostname}\n", 0644) if -d '/etc';
    rename_in_hosts($old, $o{hostname});
  }
  address6($RTM_DELADDR, $nic, $former) if $former ne '' && $former ne (defined $o{address6} ? $o{address6} : '');
  address6($RTM_NEWADDR, $nic, $o{address6}) if defined $o{address6};
  for (@files) {
    my ($mode, $path, $text) = /^([0-7]{3,4}) (\/[^\0]*)\0(.*)$/s or die "a file's words are wrong\n";
    replace_file($path, $text, oct $mode) or die "$path cannot be written: $!\n";
  }
  if ($o{machineid} && -s '/etc/machine-id') {
    open(my $r, '<', '/dev/urandom') or die "no /dev/urandom: $!\n";
    sysread($r, my $id, 16);
    replace_file('/etc/machine-id', unpack('H*', $id) . "\n", 0444);
  }
  new_host_keys() if $o{keys};
  mount_share(split(/\0/, $_)) for @mounts;
  if (@run) {
    my $status = system { $run[0] } @run;
    die "$run[0] failed ($status)\n" if $status != 0;
  }
  if (defined $o{wait}) {
    my $until = now() + $o{wait} / 1000;
    while (ipv4($nic) eq '') {
      die "$nic got no address\n" if now() > $until;
      select(undef, undef, undef, 0.02);
    }
  }
  if (defined $o{families} && $own) { system { $BUSYBOX } $BUSYBOX, 'sh', $FILES }
  await_router($nic) if defined $o{address6};
  return info('nic', nic => $nic);
}

# What a VM's life before this one, or its template, had of IPv6.
sub former_address6 {
  return read_file($INET6) =~ /^# (\S+)$/m ? $1 : '';
}

# Which families there are, for who asks by DHCP and for `files`.
sub families {
  my ($families, $lines) = @_;
  if (defined $lines) { replace_file($INET6, $lines, 0644) or die "$INET6 cannot be written: $!\n" }
  else { unlink $INET6 }
  return unlink $IPV6_ONLY if $families =~ /4/;
  replace_file($IPV6_ONLY, '', 0644) or die "$IPV6_ONLY cannot be written: $!\n";
  my ($pid) = read_file($DHCP_PID) =~ /^(\d+)/;
  kill(9, $pid) if $pid && read_file("/proc/$pid/cmdline") =~ /udhcpc/;
  unlink $DHCP_PID, '/run/noid/inet4';
}

# At once: whoever else has it would be noid's mistake, and its switch lets nobody say so.
sub address6 {
  my ($type, $nic, $cidr) = @_;
  my ($text, $prefix) = split(/\//, $cidr);
  my $index = read_file("/sys/class/net/$nic/ifindex") + 0 or die "there is no $nic\n";
  socket(my $s, $AF_NETLINK, 3, 0) or die "no socket: $!\n";
  my $body = pack('CCCCL SSa16', $AF_INET6, $prefix, $IFA_F_NODAD, 0, $index, 20, $IFA_ADDRESS, bytes6($text));
  my $how = $NLM_F_REQUEST | $NLM_F_ACK | ($type == $RTM_NEWADDR ? $NLM_F_CREATE | $NLM_F_REPLACE : 0);
  send($s, pack('LSSLL', 16 + length $body, $type, $how, 1, 0) . $body, 0) or die "$nic cannot be told $cidr: $!\n";
  defined recv($s, my $answer, 4096, 0) or die "$nic cannot be told $cidr: $!\n";
  return if ($! = -unpack('x16l', $answer)) == 0 || $type == $RTM_DELADDR;
  die "$nic cannot have $cidr: $!\n";
}

# RFC 4291 §2.2, without the form that ends like an IPv4 address.
sub bytes6 {
  my ($text) = @_;
  my ($front, $back) = map { [split(/:/, $_)] } split(/::/, $text, 2), '';
  my @missing = (0) x (8 - @$front - @$back);
  my @groups = (@$front, @missing, @$back);
  die "\"$text\" is no IPv6 address\n" if @groups != 8 || grep { !/^[0-9a-f]{1,4}$/i } @groups;
  return pack('n8', map { hex } @groups);
}

# The kernel asks for routers when its own address has been probed; this asks now. A network without one costs the wait.
sub await_router {
  my ($nic) = @_;
  my $until = now() + $ROUTER;
  socket(my $s, $AF_INET6, 3, 58) or return;
  # SO_BINDTODEVICE, IPV6_MULTICAST_HOPS: RFC 4861 §6.1.1
  setsockopt($s, 1, 25, "$nic\0");
  setsockopt($s, 41, 18, pack('i', 255));
  my $index = read_file("/sys/class/net/$nic/ifindex") + 0;
  my $routers = pack('SnNa16L', $AF_INET6, 0, 0, pack('H*', 'ff02' . '0' x 27 . '2'), $index);
  for (my $i = 0; now() < $until; $i++) {
    return if read_file('/proc/net/ipv6_route') =~ /^0{32} 00 .* \Q$nic\E$/m;
    send($s, pack('CCnN', 133, 0, 0, 0), 0, $routers) if $i % 20 == 0;
    select(undef, undef, undef, 0.02);
  }
}

# The line of its own name: everything else in the file is its owner's.
sub rename_in_hosts {
  my ($old, $new) = @_;
  my $text = read_file('/etc/hosts');
  return if $old eq '' || $old eq $new || $old =~ /^localhost/ || $text eq '';
  my $changed = $text;
  $changed =~ s/(?<=[\s])\Q$old\E(?=[.\s]|$)/$new/mg;
  replace_file('/etc/hosts', $changed, 0644) if $changed ne $text;
}

# A directory of the host. Its driver is there already, or built in, or the image's own modprobe finds it.
sub mount_share {
  my ($tag, $target, $access) = @_;
  my $path = '';
  for (grep { $_ ne '' } split(/\//, $target)) {
    $path .= "/$_";
    -d $path or mkdir($path, 0755) or die "$path cannot be made: $!\n";
  }
  # MS_NOSUID, MS_NODEV, MS_RDONLY
  my $flags = 2 | 4 | ($access eq 'ro' ? 1 : 0);
  # Not a constant: syscall may write to what it is given.
  my $type = 'virtiofs';
  for my $try (0, 1) {
    return if syscall($sys->{mount}, $tag, $target, $type, $flags + 0, 0) == 0;
    my $why = "$!";
    die "$target cannot be mounted: $why\n" if $try || $! != $ENODEV;
    system { $_ } $_, ($_ eq $BUSYBOX ? 'modprobe' : ()), 'virtiofs' for grep { -x $_ } '/sbin/modprobe', $BUSYBOX;
  }
}

# Keys that a template had are everybody's.
sub new_host_keys {
  my @old = glob_keys();
  return if !@old;
  unlink @old;
  my ($keygen) = grep { -x $_ } map { "$_/ssh-keygen" } split(/:/, $VM_PATH);
  return if !$keygen;
  open(my $quiet, '>', '/dev/null');
  syscall($sys->{dup3}, fileno($quiet), 1, 0);
  system { $keygen } $keygen, '-A';
  my $pid = read_file('/run/sshd.pid');
  kill(1, $1) if $pid =~ /^(\d+)/ && $1 > 1;
}

sub glob_keys {
  opendir(my $d, '/etc/ssh') or return;
  return map { "/etc/ssh/$_" } grep { /^ssh_host_.*key(\.pub)?$/ } readdir $d;
}

# Down and up again: what the interface knew of the network under its old address is forgotten.
sub set_mac {
  my ($nic, $mac) = @_;
  my @bytes = $mac =~ /^([0-9a-f]{2}):([0-9a-f]{2}):([0-9a-f]{2}):([0-9a-f]{2}):([0-9a-f]{2}):([0-9a-f]{2})$/i
    or die "\"$mac\" is no MAC address\n";
  socket(my $s, 2, 2, 0) or die "no socket: $!\n";
  my $r = pack('a16x24', $nic);
  ioctl($s, $SIOCGIFFLAGS, $r) or die "there is no $nic: $!\n";
  my $flags = unpack('x16S', $r);
  $r = pack('a16Sx22', $nic, $flags & ~1);
  ioctl($s, $SIOCSIFFLAGS, $r) or die "$nic cannot be set down: $!\n";
  $r = pack('a16SC6x16', $nic, 1, map { hex } @bytes);
  ioctl($s, $SIOCSIFHWADDR, $r) or die "the address of $nic cannot be changed: $!\n";
  $r = pack('a16Sx22', $nic, $flags | 1);
  ioctl($s, $SIOCSIFFLAGS, $r) or die "$nic cannot be set up: $!\n";
}

# how off|reboot, grace ms. An init that is neither systemd nor noid's is not asked.
sub poweroff {
  my ($to, %o) = @_;
  my $again = ($o{how} || 'off') eq 'reboot';
  my ($init, $line) = (read_file('/proc/1/comm'), read_file('/proc/1/cmdline'));
  syswrite($to, pack('C', 1));
  close $to;
  select(undef, undef, undef, 0.05);
  if ($init =~ /^systemd$/m) {
    # SIGRTMIN+4, +5: what systemd(1) takes for it.
    kill($again ? 39 : 38, 1);
    syscall($sys->{exit}, 0);
  }
  # noid's own: busybox's signals.
  if ($line =~ m{/run/noid/}) {
    kill($again ? 15 : 12, 1);
    syscall($sys->{exit}, 0);
  }
  kill($_, -1) for 15, 18;
  my $until = now() + (defined $o{grace} ? $o{grace} : 2000) / 1000;
  select(undef, undef, undef, 0.02) while others() && now() < $until;
  kill(9, -1) if others();
  syscall($sys->{sync});
  # Emergency remount, read-only: what is mounted is whole afterwards.
  write_file('/proc/sysrq-trigger', 'u');
  syscall($sys->{reboot}, 0xfee1dead, 672274793, $again ? 0x01234567 : 0x4321fedc, 0);
  syscall($sys->{exit}, 1);
}

# Processes that are neither the kernel's, nor init, nor the agent's own.
sub others {
  opendir(my $d, '/proc') or return 0;
  my $parent = getppid();
  for my $p (grep { /^\d+$/ && $_ > 2 && $_ != $$ && $_ != $parent } readdir $d) {
    my (undef, $rest) = split(/\) /, read_file("/proc/$p/stat"), 2);
    next if !defined $rest;
    my ($state, $of) = split(' ', $rest);
    return 1 if $of != 2 && $state ne 'Z';
  }
  return 0;
}

# -- files, time ---------------------------------------------------------------------------------------------------------
sub read_file {
  my ($path) = @_;
  open(my $fh, '<', $path) or return '';
  my $text = '';
  while (length $text < 1 << 20) { sysread($fh, $text, 65536, length $text) or last }
  return $text;
}

sub write_file {
  my ($path, $text) = @_;
  open(my $fh, '>', $path) or return 0;
  return defined syswrite($fh, $text);
}

# Whole or not at all. A link (resolv.conf often is one) becomes a file: it may lead to where nobody writes any more.
sub replace_file {
  my ($path, $text, $mode) = @_;
  open(my $fh, '>', "$path.noid") or return 0;
  defined syswrite($fh, $text) or return 0;
  chmod $mode, $fh;
  close $fh;
  return rename("$path.noid", $path);
}

sub machine {
  # struct utsname: five fields of 65 bytes, the machine the last of them. Its own number is what it tells about itself.
  for my $n (63, 160) {
    my $u = "\0" x 390;
    next if syscall($n, $u) != 0;
    my $m = unpack('x260Z65', $u);
    return $m if $SYS{$m};
  }
  return 'unknown';
}

# Of the monotonic clock: `configure` sets the other one.
sub now {
  my $t = "\0" x 16;
  return time if syscall($machine eq 'x86_64' ? 228 : 113, 1, $t) != 0;
  my ($s, $ns) = unpack('qq', $t);
  return $s + $ns / 1e9;
}
