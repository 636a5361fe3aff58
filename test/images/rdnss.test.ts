/** The guest's question for name servers on a network without IPv4 (guest/rdnss.pl), against a router that says what it should and what it should not. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { test } from 'node:test'
import { GUEST_DIR } from '../../src/images/initrd.ts'
import { find } from '../../src/images/run.ts'

const lacking = ['perl', 'python3', 'ip', 'unshare'].filter((t) => find(t) === undefined)
const skip = process.getuid?.() !== 0 ? 'needs root' : lacking.length > 0 && `needs ${lacking.join(', ')}`

/** Answers each solicitation on r0 with the options given in hex; RFC 4861 §4.2. */
const ROUTER = `
import socket, struct, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'r0')
index = socket.if_nametoindex('r0')
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, 'ff02::2') + struct.pack('I', index))
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.settimeout(20)
print('ready', flush=True)
while True:
    m, who = s.recvfrom(2048)
    if m[0] == 133:
        for options in sys.argv[1:]:
            s.sendto(struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0) + bytes.fromhex(options), ('ff02::1', 0, 0, index))
`

/** In a namespace of its own: a cable with the guest's end g0 and the router's end r0. */
function ask(...advertisements: string[]): { out: string; code: number | null } {
  const script = `
soon() { for i in $(seq 300); do eval "$1" && return; sleep 0.2; done; }
ip link add g0 type veth peer name r0
for i in g0 r0; do sysctl -qw net.ipv6.conf.$i.accept_dad=0; ip link set $i up; done
soon '[ "$(ip -6 addr show scope link up | grep -c "inet6 fe80")" = 2 ]'
python3 -c "$ROUTER" "$@" >ready 2>&1 &
router=$!
soon '[ -s ready ]'
perl "$ASK" g0; code=$?
kill $router
exit $code`
  const r = spawnSync(
    'unshare',
    [
      '--net',
      '--mount',
      'sh',
      '-c',
      `mount -t sysfs s /sys && mount -t tmpfs t /mnt && cd /mnt\n${script}`,
      'sh',
      ...advertisements,
    ],
    {
      encoding: 'utf8',
      timeout: 180_000,
      env: { ...process.env, ROUTER, ASK: join(GUEST_DIR, 'rdnss.pl') },
    },
  )
  return { out: r.stdout, code: r.status }
}

const LIFETIME = '0000ffff'
const rdnss = (...servers: string[]): string => `19${hex(1 + 2 * servers.length)}0000${LIFETIME}${servers.join('')}`
const hex = (n: number): string => n.toString(16).padStart(2, '0')
const ULA = 'fd120000000000000000000000000002'
const LINK = 'fe800000000000000000000000000001'
const dnssl = (names: string): string => {
  const padded = names + '00'.repeat((8 - ((names.length / 2) % 8)) % 8)
  return `1f${hex(1 + padded.length / 16)}0000${LIFETIME}${padded}`
}
const label = (text: string): string => hex(text.length) + Buffer.from(text).toString('hex')

test('servers and domains become lines of resolv.conf', { skip }, () => {
  const { out, code } = ask(rdnss(ULA, LINK) + dnssl(`${label('noid')}${label('internal')}00`))
  assert.equal(code, 0)
  assert.equal(out, 'nameserver fd12:0:0:0:0:0:0:2\nnameserver fe80:0:0:0:0:0:0:1%g0\nsearch noid.internal\n')
})

test('what is broken, expired or hostile is passed over for what comes next', { skip }, () => {
  const none = '1900000000000000'
  const cut = `19050000${LIFETIME}${ULA}`
  const expired = `1903000000000000${ULA}`
  const evil = rdnss(ULA) + dnssl(`${label('a\nnameserver 6.6.6.6')}00`)
  const { out, code } = ask(none, cut, expired, evil)
  assert.equal(code, 0)
  assert.equal(out, 'nameserver fd12:0:0:0:0:0:0:2\n')
})

test('a router that says nothing of names: none, and it ends', { skip }, () => {
  const { out, code } = ask('0501000000000500')
  assert.deepEqual([out, code], ['', 1])
})
