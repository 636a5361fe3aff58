// What the bridge backend writes into iptables and ebtables, as text: nothing is set twice, nobody else's line is touched.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type Guard,
  type GuardedNetwork,
  guarded,
  guardText,
  refusals,
  unguardText,
} from '../../src/plugins/bridge/guard.ts'
import {
  chains,
  leadsLoopback,
  type PortRule,
  type RuleModel,
  removeText,
  restoreText,
  takenBy,
  whole,
} from '../../src/plugins/bridge/rules.ts'

const model: RuleModel = {
  link: 'noid3',
  four: {
    subnet: '192.168.103.0/24',
    gateway: '192.168.103.1',
    services: '192.168.103.2',
    hostAddress: '192.168.103.254',
    hostAddresses: ['10.0.0.1', '172.17.0.1'],
  },
  isolated: false,
  allowHostPorts: [9100],
  publishes: [
    { proto: 'tcp', hostAddress: '0.0.0.0', hostPort: 8080, guestAddress: '192.168.103.10', guestPort: 80 },
    { proto: 'udp', hostAddress: '10.0.0.1', hostPort: 53, guestAddress: '192.168.103.10', guestPort: 53 },
  ],
}
const net: GuardedNetwork = { link: 'noid3', ipv4: true }
const a: Guard = { vm: 'a', ifname: 'nb0', mac: '52:54:00:00:00:0a', address: '192.168.103.10' }
const b: Guard = { vm: 'b', ifname: 'nb1', mac: '52:54:00:00:00:0b', address: '192.168.103.11' }
const FOREIGN = ['*filter', ':FORWARD DROP [0:0]', ':DOCKER - [0:0]', '-A FORWARD -j DOCKER', 'COMMIT', ''].join('\n')

/** What iptables-save would show after `text`: enough of iptables to carry out what is written here. */
function saved(text: string, before = ''): string {
  const tables = new Map<string, string[]>()
  let table = ''
  for (const l of `${before}\n${text}`.split('\n')) {
    if (l.startsWith('*')) table = l
    if (!tables.has(table)) tables.set(table, [])
    const lines = tables.get(table) as string[]
    const [verb, chain] = l.split(' ')
    const gone = (keep: (x: string) => boolean) => tables.set(table, lines.filter(keep))
    if (l.startsWith(':')) {
      gone((x) => !x.startsWith(`${verb} `) && !x.startsWith(`-A ${(verb as string).slice(1)} `))
      tables.get(table)?.push(l)
    } else if (verb === '-A') lines.push(l)
    else if (verb === '-I') lines.push(l.replace('-I', '-A'))
    else if (verb === '-D') lines.splice(lines.indexOf(l.replace('-D', '-A')), 1)
    else if (verb === '-F') gone((x) => !x.startsWith(`-A ${chain} `))
    else if (verb === '-X') gone((x) => !x.startsWith(`:${chain} `))
  }
  return [...tables].flatMap(([t, lines]) => (t === '' ? [] : [t, ...lines, 'COMMIT'])).join('\n')
}

test('written once, everything is there; written again, no jump is set twice; removed, only foreign lines are left', () => {
  const all = chains(model)
  assert.equal(whole(all, FOREIGN), false)
  const once = saved(restoreText(all, FOREIGN), FOREIGN)
  assert.ok(whole(all, once))
  const twice = restoreText(all, once)
  assert.doesNotMatch(twice, /^-I /m)
  assert.equal(saved(twice, once).split('\n').length, once.split('\n').length)
  const gone = saved(removeText(model.link, once), once)
  assert.doesNotMatch(gone, /NOID/)
  assert.match(gone, /^-A FORWARD -j DOCKER$/m)
  assert.equal(removeText(model.link, gone), '')
})

test('a jump that somebody removed is seen, and all of a chain are set again, in order', () => {
  const all = chains(model)
  const once = saved(restoreText(all, FOREIGN), FOREIGN)
  const meddled = once.replace(/^-A FORWARD -i noid3 .*NOID3-FWD\n/m, '')
  assert.equal(whole(all, meddled), false)
  assert.ok(whole(all, saved(restoreText(all, meddled), meddled)))
})

test('the loopback is led by a port at its addresses or everywhere, and by --allow-host; by nothing else', () => {
  const [everywhere, elsewhere] = model.publishes as [PortRule, PortRule]
  const leads = (more: Partial<RuleModel>) => leadsLoopback({ ...model, allowHostPorts: [], publishes: [], ...more })
  assert.equal(leads({}), false)
  assert.equal(leads({ publishes: [elsewhere] }), false)
  assert.equal(leads({ publishes: [everywhere] }), true)
  assert.equal(leads({ publishes: [{ ...everywhere, hostAddress: '127.0.0.1' }] }), true)
  assert.equal(leads({ publishes: [{ ...everywhere, hostAddress: '::' }] }), false)
  assert.equal(leads({ allowHostPorts: [9100] }), true)
  const { four: _, ...six } = model
  assert.equal(leadsLoopback(six), false)
})

test('who takes a port by a rule', () => {
  const rules = saved(restoreText(chains(model), FOREIGN), FOREIGN)
  const asks = (proto: string, hostAddress: string, hostPort: number) =>
    takenBy(rules, { proto, hostAddress, hostPort })
  assert.equal(asks('tcp', '0.0.0.0', 8080), 'a VM on noid3')
  assert.equal(asks('tcp', '127.0.0.1', 8080), 'a VM on noid3')
  assert.equal(asks('udp', '0.0.0.0', 8080), undefined)
  assert.equal(asks('udp', '10.0.0.1', 53), 'a VM on noid3')
  assert.equal(asks('udp', '10.0.0.2', 53), undefined)
  assert.equal(asks('tcp', '0.0.0.0', 9100), undefined, '--allow-host takes nothing from the host')
  const docker =
    '*nat\n-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8000:8010 -j DNAT --to-destination 172.17.0.2:80\nCOMMIT\n'
  assert.equal(
    takenBy(docker, { proto: 'tcp', hostAddress: '0.0.0.0', hostPort: 8005 }),
    'a rule in the chain DOCKER of iptables',
  )
  assert.equal(takenBy(docker, { proto: 'tcp', hostAddress: '0.0.0.0', hostPort: 8011 }), undefined)
})

test('guards: a port that comes or goes touches no other, and nothing is left', () => {
  const one = saved(guardText(net, [a], ''))
  assert.ok(guarded(net, [a], one))
  assert.equal(guardText(net, [a], one), '')
  const added = guardText(net, [a, b], one)
  assert.doesNotMatch(added, /nb0|:0a/)
  const two = saved(added, one)
  assert.ok(guarded(net, [a, b], two))
  const less = guardText(net, [b], two)
  assert.doesNotMatch(less, /nb1|:0b/)
  const rest = saved(less, two)
  assert.ok(guarded(net, [b], rest))
  assert.doesNotMatch(rest, /nb0|:0a/)
  assert.doesNotMatch(saved(unguardText('noid3', rest), rest), /NOID3/)
  assert.equal(guarded(net, [a, b], two.replace(/^-A PREROUTING .*\n/m, '')), false)
})

test('refusals are read by reason, and who uses whose MAC is told', () => {
  const text = saved(guardText(net, [a, b], ''))
  const listed = [...text.matchAll(/^:(\S+) /gm)]
    .map(([, chain]) => {
      const rules = text.split('\n').filter((l) => l.startsWith(`-A ${chain} `))
      const counted = rules.map((l) => {
        const hit = (/ -s ! 52:54:00:00:00:0b /.test(l) || l.includes('-CLAIMS -s 52:54:00:00:00:0a')) && 4
        return `${l.replace(`-A ${chain} `, '').replace('00:00:00:0a', '0:0:0:a')} , pcnt = ${hit || 0} -- bcnt = 0`
      })
      return [`Bridge chain: ${chain}, entries: ${rules.length}, policy: RETURN`, ...counted, ''].join('\n')
    })
    .join('\n')
  const r = refusals(net, [a, b], listed)
  assert.deepEqual(
    r.drops.map((d) => [d.vm, d.reason, d.count]),
    [['b', 'guard-mac', 4]],
  )
  assert.match(r.warnings.join(), /^b sends from MAC 52:54:00:00:00:0a, which belongs to a;/)
})
