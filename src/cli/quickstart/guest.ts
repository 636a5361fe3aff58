/**
 * Small TCP programs that run inside a VM with whatever the VM has: python3, perl or node.
 *
 *   serve PORT         prints "ready", answers each connection with a line and the peer's address
 *   fetch HOST PORT    prints what the other side sends until it closes
 *   send HOST PORT S   sends for S seconds
 *   receive HOST PORT  reads until the other side closes
 *
 * A VM need not have any of them; then the steps that need one are skipped, and said to be.
 */
const PYTHON = `
import socket, sys, time
verb, args = sys.argv[1], sys.argv[2:]
if verb == 'serve':
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('0.0.0.0', int(args[0]))); s.listen(8); print('ready', flush=True)
    while True:
        c, peer = s.accept(); c.sendall(('hello ' + peer[0] + '\\n').encode()); c.close()
c = socket.create_connection((args[0], int(args[1])), 8)
if verb == 'send':
    c.settimeout(None); block = b'x' * 262144; end = time.time() + float(args[2])
    while time.time() < end: c.sendall(block)
else:
    c.settimeout(20)
    while True:
        b = c.recv(262144)
        if not b: break
        if verb == 'fetch': sys.stdout.write(b.decode()); sys.stdout.flush()
c.close()
`

const PERL = `
use IO::Socket::INET; use Time::HiRes 'time'; $| = 1;
my ($verb, @a) = @ARGV;
if ($verb eq 'serve') {
  my $s = IO::Socket::INET->new(LocalPort => $a[0], Listen => 8, ReuseAddr => 1) or die "$@\\n"; print "ready\\n";
  while (my $c = $s->accept) { print $c 'hello ' . $c->peerhost . "\\n"; close $c }
}
my $c = IO::Socket::INET->new(PeerAddr => $a[0], PeerPort => $a[1], Timeout => 8) or die "$@\\n";
if ($verb eq 'send') { my $block = 'x' x 262144; my $end = time + $a[2]; syswrite($c, $block) or die while time < $end }
else { my $b; while (sysread($c, $b, 262144)) { print $b if $verb eq 'fetch' } }
close $c;
`

const NODE = `
const net = require('node:net'), [verb, ...a] = process.argv.slice(1)
if (verb === 'serve') net.createServer(c => c.end('hello ' + (c.remoteAddress || '').replace('::ffff:', '') + '\\n'))
  .listen(+a[0], '0.0.0.0', () => console.log('ready'))
else {
  const c = net.connect(+a[1], a[0]); c.setTimeout(20000, () => process.exit(1)); c.on('error', e => { console.error(e.message); process.exit(1) })
  if (verb === 'fetch') c.pipe(process.stdout)
  if (verb === 'receive') c.resume()
  if (verb === 'send') c.on('connect', () => {
    const block = Buffer.alloc(262144, 'x'), end = Date.now() + a[2] * 1000
    const go = () => { while (Date.now() < end) if (!c.write(block)) return c.once('drain', go); c.destroySoon() }; go() })
}
`

export type Interpreter = 'python3' | 'perl' | 'node'

/** Prints the first interpreter the VM has. */
export const FIND_INTERPRETER = [
  'sh',
  '-c',
  'for p in python3 perl node; do command -v $p >/dev/null && echo $p && exit; done; exit 1',
]

export function program(with_: Interpreter, verb: string, ...args: (string | number)[]): string[] {
  const words = [verb, ...args.map(String)]
  if (with_ === 'python3') return ['python3', '-c', PYTHON, ...words]
  if (with_ === 'perl') return ['perl', '-e', PERL, ...words]
  return ['node', '-e', NODE, ...words]
}
