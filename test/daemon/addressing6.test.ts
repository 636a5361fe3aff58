import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  checkSubnet6,
  chooseSubnet6,
  claimAddress6,
  formatIpv6,
  formatPrefix6,
  nextAddress6,
  overlaps6,
  type Prefix6,
  parseIpv6,
  parsePrefix6,
  parseRoutes6,
  parseSubnet6,
  plan6Of,
  role6Of,
  slaacOf,
  ulaOf,
} from '../../src/daemon/addressing6.ts'
import { NoidError } from '../../src/errors.ts'

const prefix = (t: string): Prefix6 => parsePrefix6(t) as Prefix6
const address = (t: string): bigint => parseIpv6(t) as bigint
const code = (c: string) => (e: unknown) => e instanceof NoidError && e.code === c
const plan = plan6Of(prefix('fd12:3456:789a:1::/64'))

test('an address is the same after text and back, in the spelling of RFC 5952', () => {
  fc.assert(fc.property(fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }), (n) => parseIpv6(formatIpv6(n)) === n))
  for (const [typed, told] of [
    ['2001:DB8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['2001:0db8::0:0:1:0', '2001:db8::1:0'],
    ['0:0:0:0:0:0:0:0', '::'],
    ['::1', '::1'],
    ['fd00::', 'fd00::'],
    ['::ffff:192.168.1.10', '::ffff:c0a8:10a'],
    ['64:ff9b::1.2.3.4', '64:ff9b::102:304'],
  ] as const)
    assert.equal(formatIpv6(address(typed)), told, typed)
  for (const t of ['', ':', ':::', '1::2::3', '12345::', 'fe80::1%eth0', '1.2.3.4', '::1/128', '[::1]', ' ::1', 'g::'])
    assert.equal(parseIpv6(t), undefined, t)
})

test("a prefix is cut up with a /24's digits", () => {
  assert.deepEqual([plan.gateway, plan.services, plan.host].map(formatIpv6), [
    'fd12:3456:789a:1::1',
    'fd12:3456:789a:1::2',
    'fd12:3456:789a:1::254',
  ])
  const next = (octet: number, ...taken: string[]) =>
    formatIpv6(
      nextAddress6(
        plan,
        taken.map((t) => ({ address: address(t), vm: 'x' })),
        octet,
      ),
    )
  assert.equal(next(10), 'fd12:3456:789a:1::10')
  assert.equal(next(250), 'fd12:3456:789a:1::250')
  assert.equal(next(10, 'fd12:3456:789a:1::10'), 'fd12:3456:789a:1::100')
  // .1, .2 and .254 are a VM's in a subnet greater than a /24.
  for (const octet of [0, 1, 2, 254]) assert.equal(next(octet), 'fd12:3456:789a:1::100')
})

test("addresses that are handed out differ, are nobody else's and never run out", () => {
  const holders: { address: bigint; vm: string }[] = []
  for (let i = 0; i < 300; i++) {
    const a = nextAddress6(plan, holders)
    assert.equal(role6Of(a, plan), undefined)
    assert.ok(!holders.some((h) => h.address === a))
    holders.push({ address: a, vm: `vm${i}` })
  }
  assert.equal(formatIpv6(holders[150]?.address as bigint), 'fd12:3456:789a:1::250')
  assert.equal(formatIpv6(holders[151]?.address as bigint), 'fd12:3456:789a:1::1000')
})

test('--ip is refused by reason and by name', () => {
  const holders = [{ address: address('fd12:3456:789a:1::10'), vm: 'web' }]
  const claim = (t: string) => formatIpv6(claimAddress6(t, 'default', plan, holders))
  assert.equal(claim('fd12:3456:789a:1:0::BEEF'), 'fd12:3456:789a:1::beef')
  assert.throws(() => claim('x'), code('ADDRESS_INVALID'))
  assert.throws(() => claim('fd12:3456:789a:2::10'), code('ADDRESS_OUTSIDE'))
  for (const id of [':', ':1', ':2', ':254', 'fdff:ffff:ffff:ffff', 'ffff:ffff:ffff:ff80'])
    assert.throws(() => claim(`fd12:3456:789a:1:${id}`), code('ADDRESS_RESERVED'), id)
  assert.throws(() => claim('fd12:3456:789a:1::10'), /belongs to the VM "web"/)
})

test('subnets: a /64 of unicast addresses, without host bits', () => {
  for (const t of ['fd12:3456:789a:1::/64', '2001:db8:1:2::/64', 'fc00::/64'])
    assert.equal(formatPrefix6(parseSubnet6(t)), t)
  assert.equal(formatPrefix6(parseSubnet6('FD12:0:0:1:0::/64')), 'fd12:0:0:1::/64')
  for (const t of [
    'fe80::/64',
    'ff02::/64',
    'fec0::/64',
    '::/64',
    '::ffff:0:0/64',
    'fd00::/48',
    'fd00::/65',
    'fd00::1/64',
    'fd00::',
    '192.168.1.0/24',
    'fd00::/64/3',
    'x',
  ])
    assert.throws(() => parseSubnet6(t), code('SUBNET_INVALID'), t)
  assert.throws(() => parseSubnet6('x'), { hint: /\/64/ })
})

test('an installation has a /48 of fd00::/8, and its networks the next free /64 of it', () => {
  const ula = ulaOf(Uint8Array.of(0x12, 0x34, 0x56, 0x78, 0x9a))
  assert.equal(formatPrefix6(ula), 'fd12:3456:789a::/48')
  const taken: { subnet: Prefix6; by: string }[] = [{ subnet: prefix('fd12:3456:789a:2::/64'), by: 'a route' }]
  const chosen: string[] = []
  for (let i = 0; i < 3; i++) {
    const subnet = chooseSubnet6(ula, taken)
    chosen.push(formatPrefix6(subnet))
    taken.push({ subnet, by: `network ${i}` })
  }
  assert.deepEqual(chosen, ['fd12:3456:789a:1::/64', 'fd12:3456:789a:3::/64', 'fd12:3456:789a:4::/64'])
  const gateway = { subnet: prefix('::/0'), by: 'default route' }
  assert.equal(formatPrefix6(chooseSubnet6(ula, [gateway])), 'fd12:3456:789a:1::/64')
  const vpn = { subnet: prefix('fd00::/8'), by: 'the host route fd00::/8 (wg0)' }
  assert.throws(() => chooseSubnet6(ula, [vpn]), /overlaps the host route fd00::\/8 \(wg0\)/)
  assert.throws(() => checkSubnet6(prefix('fd77::/64'), [vpn]), code('SUBNET_TAKEN'))
  checkSubnet6(prefix('2001:db8::/64'), [vpn, gateway])
  assert.ok(overlaps6(prefix('fd00::/64'), vpn.subnet) && overlaps6(vpn.subnet, prefix('fd00::/64')))
})

test('/proc/net/ipv6_route is read as the kernel writes it; what is refused takes nothing', () => {
  const none = '0'.repeat(32)
  const line = (to: string, bits: string, flags: string, link: string) =>
    `${to} ${bits} ${none} 00 ${none} 00000100 00000001 00000000 ${flags} ${link.padStart(8)}`
  const text = [
    line('fd000000000000000000000000000000', '40', '00000001', 'eth0'),
    line('fd000000000000000000000000000000', '08', '00200200', 'lo'),
    line(none, '00', '00000003', 'eth0'),
    '',
  ].join('\n')
  assert.deepEqual(
    parseRoutes6(text).map((r) => r.by),
    ['the host route fd00::/64 (eth0)', 'the host route ::/0 (eth0)'],
  )
})

test('SLAAC makes of a MAC what the kernel makes of it', () => {
  assert.equal(formatIpv6(slaacOf(plan, '02:fc:00:00:00:01')), 'fd12:3456:789a:1:fc:ff:fe00:1')
  assert.equal(formatIpv6(slaacOf(plan, '52:54:00:12:34:56')), 'fd12:3456:789a:1:5054:ff:fe12:3456')
})
