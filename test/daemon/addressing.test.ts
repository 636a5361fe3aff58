import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  checkSubnet,
  chooseSubnet,
  claimAddress,
  formatIpv4,
  formatSubnet,
  macOf,
  nextAddress,
  overlaps,
  parseCidr,
  parseIpv4,
  parseMac,
  parseRoutes,
  parseSubnet,
  planOf,
  roleOf,
  type Subnet,
} from '../../src/daemon/addressing.ts'
import { NoidError } from '../../src/errors.ts'

const cidr = (t: string): Subnet => parseCidr(t) as Subnet
const code = (c: string) => (e: unknown) => e instanceof NoidError && e.code === c
const anySubnet = fc
  .tuple(fc.integer({ min: 16, max: 28 }), fc.integer({ min: 0, max: 0xffff }))
  .map(([prefix, n]): Subnet => {
    const size = 2 ** (32 - prefix)
    const base = 0xc0a80000 + n
    return { base: base - (base % size), prefix }
  })

test('an address is the same after text and back', () => {
  fc.assert(fc.property(fc.integer({ min: 0, max: 0xffffffff }), (n) => parseIpv4(formatIpv4(n)) === n))
  for (const t of ['1.2.3', '1.2.3.4.5', '256.1.1.1', '01.1.1.1', ' 1.1.1.1', '1.1.1.1 ', '0x1.1.1.1', '', 'a.b.c.d'])
    assert.equal(parseIpv4(t), undefined, t)
})

test('a /24 is cut up as the product page has it', () => {
  const p = planOf(cidr('192.168.100.0/24'))
  assert.equal(formatIpv4(p.gateway), '192.168.100.1')
  assert.equal(formatIpv4(p.services), '192.168.100.2')
  assert.equal(formatIpv4(p.host), '192.168.100.254')
  assert.deepEqual(p.pool.map(formatIpv4), ['192.168.100.100', '192.168.100.250'])
  assert.deepEqual(p.usable.map(formatIpv4), ['192.168.100.3', '192.168.100.253'])
})

test('in every size the pool is usable, not empty, and no VM is given a fixed role', () => {
  fc.assert(
    fc.property(anySubnet, (s) => {
      const p = planOf(s)
      const last = s.base + 2 ** (32 - s.prefix) - 1
      assert.ok(p.usable[0] <= p.pool[0] && p.pool[0] < p.pool[1] && p.pool[1] <= p.usable[1])
      for (const fixed of [s.base, p.gateway, p.services, p.host, last]) {
        assert.ok(fixed < p.usable[0] || fixed > p.usable[1])
        assert.notEqual(roleOf(fixed, p), undefined)
      }
      for (const a of [...p.usable, ...p.pool]) assert.equal(roleOf(a, p), undefined)
    }),
  )
})

test('the pool hands out each address once, then says that it is full', () => {
  const p = planOf(cidr('192.168.7.16/28'))
  const holders: { address: number; vm: string }[] = []
  for (let i = p.pool[0]; i <= p.pool[1]; i++) holders.push({ address: nextAddress('n', p, holders), vm: `vm${i}` })
  assert.equal(new Set(holders.map((h) => h.address)).size, holders.length)
  assert.throws(() => nextAddress('n', p, holders), code('POOL_EXHAUSTED'))
  holders.splice(3, 1)
  assert.equal(nextAddress('n', p, holders), p.pool[0] + 3)
})

test('--ip is refused by reason and by name', () => {
  const p = planOf(cidr('192.168.100.0/24'))
  const holders = [{ address: parseIpv4('192.168.100.10') as number, vm: 'web' }]
  assert.equal(formatIpv4(claimAddress('192.168.100.11', 'default', p, holders)), '192.168.100.11')
  assert.throws(() => claimAddress('x', 'default', p, holders), code('ADDRESS_INVALID'))
  assert.throws(() => claimAddress('192.168.101.1', 'default', p, holders), code('ADDRESS_OUTSIDE'))
  for (const a of [0, 1, 2, 254, 255])
    assert.throws(() => claimAddress(`192.168.100.${a}`, 'default', p, holders), code('ADDRESS_RESERVED'))
  assert.throws(() => claimAddress('192.168.100.10', 'default', p, holders), /belongs to the VM "web"/)
})

test('subnets: private, of a usable size, without host bits', () => {
  for (const t of ['10.0.0.0/16', '172.31.255.240/28', '192.168.120.0/24', '100.64.0.0/20'])
    assert.equal(formatSubnet(parseSubnet(t)), t)
  for (const t of [
    '8.8.8.0/24',
    '10.0.0.0/8',
    '192.168.1.0/29',
    '192.168.1.1/24',
    '192.168.1.0',
    'x',
    '192.168.1.0/24/3',
  ])
    assert.throws(() => parseSubnet(t), code('SUBNET_INVALID'), t)
})

test('overlap is symmetric and equals sharing an address', () => {
  fc.assert(
    fc.property(anySubnet, anySubnet, (a, b) => {
      const end = (s: Subnet) => s.base + 2 ** (32 - s.prefix)
      const shared = Math.max(a.base, b.base) < Math.min(end(a), end(b))
      assert.equal(overlaps(a, b), shared)
      assert.equal(overlaps(b, a), shared)
    }),
  )
})

test('the default network has 192.168.100.0/24, others what follows, and nobody what a route covers', () => {
  assert.deepEqual(chooseSubnet(true, []), { subnet: cidr('192.168.100.0/24'), insteadOf: undefined })
  assert.equal(formatSubnet(chooseSubnet(false, []).subnet), '192.168.101.0/24')
  const office = { subnet: cidr('192.168.100.0/22'), by: 'the host route 192.168.100.0/22 (wg0)' }
  const chosen = chooseSubnet(true, [office])
  assert.equal(formatSubnet(chosen.subnet), '192.168.104.0/24')
  assert.equal(chosen.insteadOf, office.by)
  const vpn = { subnet: cidr('192.168.0.0/16'), by: 'vpn' }
  assert.equal(formatSubnet(chooseSubnet(false, [vpn]).subnet), '10.100.0.0/24')
  const everything = [vpn, { subnet: cidr('10.0.0.0/8'), by: 'vpn' }]
  assert.throws(() => chooseSubnet(false, everything), code('SUBNET_TAKEN'))
  const gateway = { subnet: cidr('0.0.0.0/0'), by: 'default route' }
  assert.equal(formatSubnet(chooseSubnet(true, [gateway]).subnet), '192.168.100.0/24')
  checkSubnet(cidr('10.0.0.0/16'), [gateway])
  assert.throws(
    () => checkSubnet(cidr('192.168.102.0/24'), [office]),
    /overlaps the host route 192\.168\.100\.0\/22 \(wg0\)/,
  )
})

test('networks that are chosen one after the other never overlap', () => {
  fc.assert(
    fc.property(fc.array(anySubnet, { maxLength: 5 }), (routes) => {
      const taken = routes.map((subnet) => ({ subnet, by: 'route' }))
      for (let i = 0; i < 20; i++) {
        const { subnet } = chooseSubnet(i === 0, taken)
        assert.ok(!taken.some((t) => overlaps(t.subnet, subnet)))
        taken.push({ subnet, by: `network ${i}` })
      }
    }),
  )
})

test('/proc/net/route is read as the kernel writes it', () => {
  const text = [
    'Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT',
    'eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0',
    'eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0',
    'wg0\t0064A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0',
    '',
  ].join('\n')
  assert.deepEqual(
    parseRoutes(text).map((r) => r.by),
    ['the host route 0.0.0.0/0 (eth0)', 'the host route 172.17.0.0/16 (eth0)', 'the host route 192.168.100.0/24 (wg0)'],
  )
})

test('a MAC is unicast, locally administered, stable for a VM and unlike those that are taken', () => {
  const first = macOf('v1', () => false)
  assert.match(first, /^02(:[0-9a-f]{2}){5}$/)
  assert.equal(
    macOf('v1', () => false),
    first,
  )
  assert.notEqual(
    macOf('v2', () => false),
    first,
  )
  assert.notEqual(
    macOf('v1', (m) => m === first),
    first,
  )
  assert.equal(parseMac('02-AB-cd-00-00-01'), '02:ab:cd:00:00:01')
  for (const m of ['01:00:5e:00:00:01', 'ff:ff:ff:ff:ff:ff', '00:00:00:00:00:00', '02:00', 'x', '02:00:00:00:00:0g'])
    assert.throws(() => parseMac(m), code('MAC_INVALID'), m)
})
