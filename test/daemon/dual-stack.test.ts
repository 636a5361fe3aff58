/** Networks and VMs with both families, or one, over the daemon's real socket; the backend and the runtime are fakes. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { NoidError } from '../../src/errors.ts'
import type { AttachRequest, NetworkSpec, PublishSpec } from '../../src/plugins/contract.ts'
import { eventually } from '../eventually.ts'
import { kill9, Lab } from './harness.ts'

const code =
  (c: string, text = /./) =>
  (e: unknown) =>
    e instanceof NoidError && e.code === c && text.test(e.message)
const told = <T>(lab: Lab, name: string): T => JSON.parse(lab.world.get(name)) as T

test('a network of a backend that can has both families; a VM has the same digits in both, and keeps them', async (t) => {
  const lab = new Lab(t)
  const daemon = await lab.up()
  const web = await lab.create('web', { networkBackend: 'dual', ports: ['8080:80'] })
  const n = await lab.client.network(web.network)
  const prefix = /^(fd[0-9a-f]{2}:[0-9a-f]{1,4}:[0-9a-f]{1,4}:1::)\/64$/.exec(n.subnet6 ?? '')?.[1]
  assert.ok(prefix, `${n.subnet6}`)
  assert.deepEqual(
    [n.gateway6, n.services6, n.hostAddress6, n.ipv4],
    [`${prefix}1`, `${prefix}2`, `${prefix}254`, true],
  )
  assert.deepEqual(told<NetworkSpec>(lab, `.spec-${n.name}`).ipv6, {
    subnet: n.subnet6,
    gateway: n.gateway6,
    services: n.services6,
    hostAddress: n.hostAddress6,
  })
  assert.equal(web.address?.split('.')[3], '100')
  assert.equal(web.address6, `${prefix}100`)
  assert.deepEqual(told<AttachRequest>(lab, '.attach-web').addresses, [`${web.address}/24`, `${web.address6}/64`])
  const p = told<PublishSpec>(lab, '.publish')
  assert.deepEqual([p.hostAddress, p.guestAddress, p.guestAddress6], ['*', web.address, web.address6])

  const [base] = (web.address as string).split(/\d+$/)
  const db = await lab.create('db', { networkBackend: 'dual', ip: [`${prefix}77`, `${base}10`] })
  assert.deepEqual([db.address, db.address6], [`${base}10`, `${prefix}77`])
  const six = await lab.create('six', { networkBackend: 'dual', ip: `${prefix}5` })
  assert.deepEqual([six.address, six.address6], [`${base}101`, `${prefix}5`])
  const refused: readonly (readonly [string | string[], ReturnType<typeof code>])[] = [
    [`${prefix}77`, code('ADDRESS_TAKEN', /"db"/)],
    [`${prefix}1`, code('ADDRESS_RESERVED')],
    ['fd00::5', code('ADDRESS_OUTSIDE')],
    ['fd00::g', code('ADDRESS_INVALID')],
    [[`${base}20`, `${base}21`], code('INVALID_INPUT', /one family/)],
  ]
  for (const [ip, expected] of refused) await assert.rejects(lab.create('x', { networkBackend: 'dual', ip }), expected)

  await kill9(daemon)
  await lab.up()
  await eventually('the VM is adopted', async () => (await lab.client.vm('web')).state === 'running')
  const again = await lab.client.restart('web', () => {})
  assert.deepEqual([again.address, again.address6], [web.address, web.address6])
  // Another network of the same installation: the same /48.
  const other = await lab.client.createNetwork({ name: 'other', backend: 'dual' })
  assert.equal(other.subnet6, n.subnet6?.replace(':1::/64', ':2::/64'))
  // A backend that gives addresses itself keeps to the same part of the subnet, whatever its size.
  await lab.client.createNetwork({ name: 'small', backend: 'dual', subnet: '10.9.0.0/28' })
  assert.deepEqual(told<NetworkSpec>(lab, '.spec-small').pool, ['10.9.0.6', '10.9.0.13'])
})

test('one family on request', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const four = await lab.client.createNetwork({ name: 'four', backend: 'dual', family: 'ipv4' })
  assert.deepEqual([four.ipv4, four.subnet6], [true, null])
  assert.equal(told<NetworkSpec>(lab, '.spec-four').ipv6, undefined)
  const six = await lab.client.createNetwork({
    name: 'six',
    backend: 'dual',
    family: 'ipv6',
    subnet6: '2001:db8:7::/64',
  })
  assert.deepEqual([six.ipv4, six.subnet6], [false, '2001:db8:7::/64'])
  assert.equal(told<NetworkSpec>(lab, '.spec-six').ipv4, false)

  const a = await lab.create('a', { network: 'four', ports: ['8080:80'] })
  assert.equal(a.address6, null)
  assert.equal(told<PublishSpec>(lab, '.publish').hostAddress, '0.0.0.0')
  const b = await lab.create('b', { network: 'six', ports: ['8081:80'] })
  assert.deepEqual([b.address, b.address6], [null, '2001:db8:7::100'])
  assert.deepEqual(told<AttachRequest>(lab, '.attach-b').addresses, ['2001:db8:7::100/64'])
  const p = told<PublishSpec>(lab, '.publish')
  assert.deepEqual([p.hostAddress, p.guestAddress, p.guestAddress6], ['*', '', '2001:db8:7::100'])
  await assert.rejects(lab.create('c', { network: 'four', ip: 'fd00::5' }), code('ADDRESS_FAMILY', /no IPv6/))
  await assert.rejects(lab.create('c', { network: 'six', ip: '192.168.1.1' }), code('ADDRESS_FAMILY', /no IPv4/))

  const create = (body: object) => lab.client.createNetwork({ name: 'x', backend: 'dual', ...body })
  await assert.rejects(create({ family: 'ipv4', subnet6: 'fd00::/64' }), code('INVALID_INPUT'))
  await assert.rejects(create({ family: 'ipv6', subnet: '192.168.7.0/24' }), code('INVALID_INPUT'))
  await assert.rejects(create({ subnet6: 'fe80::/64' }), code('SUBNET_INVALID'))
  await assert.rejects(create({ subnet6: '2001:db8:7::/64' }), code('SUBNET_TAKEN', /network "six"/))
  await assert.rejects(create({ family: 'ipv6', mtu: 1000 }), code('INVALID_INPUT', /1280/))
  const narrow = await create({ mtu: 1000 })
  assert.equal(narrow.subnet6, null)
  assert.match(narrow.warnings.join(), /1280/)
})

test('where the kernel has no IPv6, networks have it only when it is asked for', async (t) => {
  const lab = new Lab(t)
  await lab.up({ NO_IPV6: '1' })
  const plain = await lab.client.createNetwork({ name: 'plain', backend: 'dual' })
  assert.equal(plain.subnet6, null)
  assert.match(plain.warnings.join(), /no IPv6/)
  const asked = await lab.client.createNetwork({ name: 'asked', backend: 'dual', subnet6: 'fd00:1::/64' })
  assert.equal(asked.subnet6, 'fd00:1::/64')
})

test('where a route of the host has all of fd00::/8, networks are IPv4-only unless another prefix is named', async (t) => {
  const lab = new Lab(t)
  await lab.up({ VPN6: '1' })
  const web = await lab.create('web', { networkBackend: 'dual' })
  assert.equal(web.address6, null)
  assert.match(
    (await lab.client.network(web.network)).warnings.join(),
    /fd00::\/8 \(wg0\), so this network is IPv4-only/,
  )
  await assert.rejects(lab.client.createNetwork({ name: 'x', backend: 'dual', family: 'ipv6' }), code('SUBNET_TAKEN'))
  const global = await lab.client.createNetwork({ name: 'y', backend: 'dual', subnet6: '2001:db8:7::/64' })
  assert.equal(global.subnet6, '2001:db8:7::/64')
})

test('a backend without IPv6 is never told of it', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  const web = await lab.create('web', { ports: ['8080:80'] })
  assert.deepEqual([web.address6, web.ports[0]?.hostAddress], [null, '*'])
  assert.equal(told<NetworkSpec>(lab, '.spec-default').ipv6, undefined)
  assert.equal(told<PublishSpec>(lab, '.publish').hostAddress, '0.0.0.0')
  const cannot = code('CAPABILITY_MISSING', /IPv6|::/)
  await assert.rejects(lab.create('a', { ports: ['[::1]:8081:80'] }), cannot)
  await assert.rejects(lab.client.addPorts('web', ['[::]:8081:80']), cannot)
  await assert.rejects(lab.client.createNetwork({ name: 'x', family: 'ipv6' }), cannot)
  await assert.rejects(lab.client.createNetwork({ name: 'x', subnet6: 'fd00::/64' }), cannot)
  await assert.rejects(lab.create('a', { ip: 'fd00::1' }), code('ADDRESS_FAMILY'))
})

test('who holds a port is seen across the families', async (t) => {
  const lab = new Lab(t)
  await lab.up()
  await lab.create('four', { ports: ['8080:80'] })
  // The network of "four" has IPv4 only, and so has what it opened.
  await lab.create('six', { networkBackend: 'dual', ports: ['9000:80'] })
  await assert.rejects(lab.create('x', { networkBackend: 'dual', ports: ['8080:80'] }), code('PORT_BUSY', /"four"/))
  await assert.rejects(
    lab.create('x', { networkBackend: 'dual', ports: ['[::1]:9000:80'] }),
    code('PORT_BUSY', /"six"/),
  )
  await assert.rejects(lab.create('x', { ports: ['127.0.0.1:9000:80'] }), code('PORT_BUSY', /"six"/))
  lab.world.drop('pub-tcp-8080')
  const side = await lab.create('side', { networkBackend: 'dual', ports: ['[::]:8080:80'] })
  assert.equal(side.ports[0]?.hostAddress, '::')
})
