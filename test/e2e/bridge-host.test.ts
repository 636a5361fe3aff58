/**
 * What kernel bridges are to the host they live on: foreign rules are left alone and work on, rules that somebody removed come back, switches are
 * put back, a daemon that is killed anywhere leaves nothing that the next one does not mend, and at the end the host is as it was. With
 * iptables-nft and with iptables-legacy, whichever `iptables` is.
 */
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { compareHost, type HostState } from '../../src/plugins/conformance/host-state.ts'
import type { Attachment, PublishSpec } from '../../src/plugins/contract.ts'
import { type Agent, network } from './agent-client.ts'
import { eventually, Lab, missing, type Place, repository } from './lab.ts'

// Nobody renews them: they must outlast the slowest machine.
const net = network(133, { config: { leaseSeconds: 3600 } })
const apart = network(134, { name: 'isolated', isolated: true })
const more = network(135)
const web: PublishSpec = {
  id: 'p1',
  attachment: `${net.id}-10`,
  proto: 'tcp',
  hostAddress: '0.0.0.0',
  hostPort: 8080,
  guestAddress: '192.168.133.10',
  guestPort: 80,
}

/** What Docker and ufw leave on a host, in short; port 8099 of the host goes to port 7 of the router's. */
const FOREIGN = `
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A DOCKER -p tcp --dport 8099 -j DNAT --to-destination 203.0.113.2:80
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -t nat -A POSTROUTING -d 203.0.113.2/32 -o uplink -m conntrack --ctstate DNAT -j MASQUERADE
iptables -N DOCKER-USER
iptables -N DOCKER-FORWARD
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-FORWARD
iptables -A DOCKER-USER -j RETURN
iptables -A DOCKER-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A DOCKER-FORWARD -i uplink -d 203.0.113.2/32 -p tcp --dport 80 -j ACCEPT
iptables -N ufw-before-input
iptables -A INPUT -j ufw-before-input
iptables -A ufw-before-input -i lo -j ACCEPT
iptables -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A ufw-before-input -p tcp --dport 22 -j ACCEPT
iptables -t mangle -A PREROUTING -p tcp --dport 4444 -j MARK --set-mark 0x7
iptables -P INPUT DROP
iptables -P FORWARD DROP
`
const OWN = /NOID\d/

for (const variant of ['nft', 'legacy'] as const)
  describe(`bridges on a host with iptables-${variant}`, {
    skip: missing(
      'socat',
      'curl',
      'dig',
      'udhcpc',
      'dhclient',
      'conntrack',
      'ebtables-restore',
      `iptables-${variant}-restore`,
    ),
  }, () => {
    let lab: Lab
    let agent: Agent
    let clean: HostState
    let env: NodeJS.ProcessEnv
    let vm: Place
    let attachment: Attachment

    const host = (script: string) => lab.host.run(['sh', '-ec', script], { env })
    const state = async (): Promise<HostState> => {
      const entry = join(repository, 'src/plugins/conformance/host-state.ts')
      const script = `console.log(JSON.stringify((await import(${JSON.stringify(entry)})).hostState()))`
      const r = await lab.host.run([process.execPath, '--input-type=module', '-e', script], { env })
      assert.equal(r.code, 0, r.all)
      const s = JSON.parse(r.stdout) as Record<string, string[]>
      return {
        ...s,
        mounts: [],
        conntrack: (
          await host("conntrack -L 2>/dev/null | grep -o 'src=192.168.13[345][^ ]*' | sort -u || true")
        ).stdout
          .split('\n')
          .filter(Boolean),
        processes: lab
          .processes()
          .map((p) => p.argv)
          .filter((a) => a.includes('data plane')),
      }
    }
    /** Rules, chains and policies that are not noid's. A table without any (legacy shows those that were looked at) says nothing. */
    const foreign = async () =>
      (await host('iptables-save')).stdout
        .split(/^\*/m)
        .slice(1)
        .map((table) => {
          const lines = table.split('\n').filter((l) => !OWN.test(l) && !l.startsWith('#'))
          const kept = lines.map((l) => l.replace(/\[\d+:\d+\]/, ''))
          return kept.some((l) => l.startsWith('-A') || /^:.* (-|DROP) /.test(l)) ? `*${kept.join('\n')}` : ''
        })
        .sort()
        .join('')
    const works = async () => {
      assert.match(
        (await lab.inet.run(['curl', '-sS', '--max-time', '15', 'http://10.77.0.2:8099/'])).all,
        /hello/,
        'theirs',
      )
      // The host's firewall is on: what is not published is dropped.
      assert.equal((await lab.inet.run(['nc', '-z', '-w1', '10.77.0.2', '8098'])).code, 1)
    }
    const ours = async () => {
      assert.equal(await vm.sh('curl -sS --max-time 30 http://example.com/'), 'hello 10.77.0.2')
      assert.equal(
        (await lab.inet.run(['socat', '-T10', '-', 'TCP:10.77.0.2:8080,connect-timeout=10'])).stdout.trim(),
        'web',
      )
      assert.equal(
        (await lab.host.run(['socat', '-T10', '-', 'TCP:127.0.0.1:8080,connect-timeout=10'])).stdout.trim(),
        'web',
      )
    }

    before(async () => {
      lab = await Lab.create()
      const bin = join(lab.dir, 'bin')
      mkdirSync(bin)
      for (const family of ['iptables', 'ip6tables'])
        for (const verb of ['', '-save', '-restore'])
          symlinkSync(`/usr/sbin/xtables-${variant}-multi`, join(bin, `${family}${verb}`))
      env = { ...process.env, PATH: `${bin}:${process.env.PATH}` }
      await lab.host.sh('for f in all default; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6; done')
      // Only what claims forwarding may switch it on.
      await lab.host.sh('for f in all default uplink; do echo 0 >/proc/sys/net/ipv4/conf/$f/forwarding; done')
      await lab.host.sh('echo 1 >/proc/sys/net/ipv4/conf/uplink/forwarding')
      assert.equal((await host(FOREIGN)).code, 0)
      agent = lab.agent(undefined, 'bridge', env)
      clean = await state()
    })
    after(async () => {
      await lab?.remove()
    })

    test('foreign rules stay byte for byte and work: before, during and after; ours work under DROP policies', async () => {
      const was = await foreign()
      await works()
      await agent.createNetwork(net)
      vm = lab.guest('web')
      await agent.join(net, vm, 10)
      vm.start(['socat', 'TCP-LISTEN:80,fork,reuseaddr', 'SYSTEM:echo web'])
      await eventually('it listens', async () => (await vm.sh('ss -Hlnt')) !== '')
      await agent.publish(web)
      assert.match((await host('iptables-save')).stdout, OWN, 'the variant in PATH is the one that is used')
      assert.equal(await foreign(), was)
      await works()
      await ours()
      assert.equal((await vm.run(['ping', '-c1', '-w20', '192.168.133.1'])).code, 0)
      await agent.deleteNetwork(net.id)
      compareHost(clean, await state())
      assert.equal(await foreign(), was)
      await works()
    })

    test('somebody flushes FORWARD: check says so, and the rules come back by themselves or with the next verb', async () => {
      const noticed = (script: string) =>
        eventually(`check says that rules are gone: ${script}`, async () => {
          await host(script)
          return agent.check(attachment).then(
            () => false,
            (e: Error) => /removed rules of net133/.test(e.message),
          )
        })
      const warned = () => agent.events.some((e) => e.type === 'warning' && /put them back/.test(e.message))
      await agent.createNetwork(net)
      attachment = await agent.attach(net, vm, 10)
      await vm.sh('ip addr add 192.168.133.10/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.133.1')
      await agent.publish(web)
      await agent.check(attachment)
      const rules = (await host('iptables-save -t filter')).stdout.replace(/\[\d+:\d+\]|^#.*$/gm, '')
      await noticed('iptables -F FORWARD')
      await agent.attach(net, vm, 10)
      await agent.check(attachment)
      await ours()
      await host('iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-FORWARD')
      assert.equal((await host('iptables-save -t filter')).stdout.replace(/\[\d+:\d+\]|^#.*$/gm, ''), rules)
      await noticed('ebtables -t nat -F PREROUTING')
      await agent.stats(net.id)
      await agent.check(attachment)
      await noticed('iptables -t nat -F NOID0-DNAT')
      await agent.attach(net, vm, 10)
      await ours()
      agent.events.length = 0
      for (const script of ['iptables -t raw -F PREROUTING', 'ebtables -t nat -F PREROUTING']) {
        await host(script)
        await eventually('the rules are back', () => agent.check(attachment).then(() => true))
      }
      await eventually('a warning', warned)
    })

    test("the loopback's packets pass only while a port needs it", async () => {
      const localnet = async () => (await host('cat /proc/sys/net/ipv4/conf/noid0/route_localnet')).stdout.trim()
      assert.equal(await localnet(), '1')
      await agent.unpublish(web.id)
      assert.equal(await localnet(), '0')
      await agent.publish({ ...web, hostAddress: '10.77.0.2' })
      assert.equal(await localnet(), '0')
      await agent.publish(web)
      assert.equal(await localnet(), '1')
      await ours()
    })

    test('somebody removes the bridge: it comes back with its rules, also under another name', async () => {
      const name = (await host("ip -br link show type bridge | awk '/^noid/ {print $1}'")).stdout.trim()
      await host(
        `ip link del ${name}; ip link add ${name} type dummy || ip link add ${name} type veth peer name nt-other`,
      )
      await agent.createNetwork(net)
      await vm.sh('ip addr add 192.168.133.10/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.133.1')
      await ours()
      await host(`ip link del ${name}`)
      assert.doesNotMatch((await host('iptables-save; ebtables-save')).stdout, new RegExp(`${name.toUpperCase()}-`))
    })

    test('leases and names by real clients', async () => {
      const hook = join(repository, 'test/e2e/inet/lease-hook.sh')
      const guest = lab.guest('dora')
      await agent.attach(net, guest, 20)
      const asks = 'udhcpc -f -q -n -t 20 -T 1 -i eth0'.split(' ')
      const u = await guest.run(['busybox', ...asks, '-s', hook])
      assert.equal(u.code, 0, u.all)
      assert.match(
        await guest.sh('ip -4 addr show eth0; ip route'),
        /192\.168\.133\.20\/24.*default via 192\.168\.133\.1/s,
      )
      guest.resolvConf('nameserver 192.168.133.2\nsearch noid.internal\n')
      const dig = (what: string) => guest.sh(`dig +time=10 +tries=2 ${what}`)
      assert.equal(await dig('+short example.com'), '93.184.216.34')
      assert.equal(await dig('+short +tcp example.com'), '93.184.216.34')
      assert.match(await dig('+bufsize=4096 big.example.com TXT'), /ANSWER: 15/)
      assert.match(await dig('+noedns big.example.com TXT'), /ANSWER: 15/)
      const none = await dig('example.com AAAA')
      assert.match(none, /NOERROR/)
      assert.match(none, /ANSWER: 0/)
      assert.equal(await dig('+short web.noid.internal'), '192.168.133.10')
      assert.equal(await dig('+short -x 192.168.133.10'), 'web.noid.internal.')
      assert.equal(await dig('+short +search web'), '192.168.133.10')
      assert.equal(await dig('+short host.noid.internal'), '192.168.133.254')
      const second = lab.guest('isc')
      await agent.attach(net, second, 21)
      const files = ['-lf', join(lab.dir, 'leases'), '-pf', join(lab.dir, 'dhclient.pid'), '-sf', hook]
      const { child, said } = second.hear(['dhclient', '-1', '-v', '-d', ...files, 'eth0'])
      await eventually('it has its lease', () => /bound to 192\.168\.133\.21/.test(said.out + said.err))
      child.kill('SIGKILL')
      const { leases } = await agent.stats(net.id)
      for (const name of ['dora', 'isc']) assert.equal(leases.find((l) => l.vm === name)?.state, 'bound', name)
    })

    test('the services are killed: they come back, leases stay, traffic never stopped', async () => {
      const file = join(agent.home, 'run', net.id, 'pid')
      const { pid } = JSON.parse(readFileSync(file, 'utf8')) as { pid: number }
      process.kill(pid, 'SIGKILL')
      assert.match(await vm.sh('curl -sS --max-time 30 http://93.184.216.34/'), /hello/)
      await eventually('another one', () => (JSON.parse(readFileSync(file, 'utf8')) as { pid: number }).pid !== pid)
      await eventually(
        'it answers',
        async () =>
          (await vm.run(['dig', '+time=1', '+tries=1', '+short', 'example.com', '@192.168.133.2'])).stdout.trim() !==
          '',
      )
      const { leases } = await agent.stats(net.id)
      for (const name of ['dora', 'isc']) assert.equal(leases.find((l) => l.vm === name)?.state, 'bound', name)
      await ours()
    })

    test('killed anywhere in the middle, mended by the next; at the end the host is as it was', async () => {
      for (let i = 0; i < (variant === 'nft' ? 6 : 2); i++) {
        const guest = lab.guest(`k${i}`)
        const work = (async () => {
          await agent.createNetwork(more)
          await agent.attach(more, guest, 30)
          await agent.publish({
            ...web,
            id: 'pk',
            hostPort: 8081,
            attachment: `${more.id}-30`,
            guestAddress: '192.168.135.30',
          })
          await agent.unpublish('pk')
          await agent.detach(`${more.id}-30`, more.id)
          await agent.deleteNetwork(more.id)
        })().catch(() => {})
        await sleep(60 + i * 170)
        await agent.kill()
        await work
        agent.again()
        await agent.createNetwork(net)
        if (i % 2 === 0) {
          await agent.createNetwork(more)
          const a = await agent.attach(more, guest, 30)
          await agent.check(a)
        }
        await agent.deleteNetwork(more.id)
        await guest.remove()
      }
      await ours()
      await agent.createNetwork(apart)
      await Promise.all([net.id, apart.id, more.id].map((id) => agent.deleteNetwork(id)))
      compareHost(clean, await state())
    })

    test('forwarding of the outside links is claimed by count, by two daemons, and put back unless somebody took over', async () => {
      const uplink = '/proc/sys/net/ipv4/conf/uplink/forwarding'
      const value = async () => (await host(`cat ${uplink}`)).stdout.trim()
      const second = lab.agent(join(lab.dir, 'second'), 'bridge', env)
      await host(`echo 0 >${uplink}`)
      await agent.createNetwork(net)
      await second.createNetwork(more)
      assert.equal(await value(), '1')
      await agent.deleteNetwork(net.id)
      assert.equal(await value(), '1', 'the other still needs it')
      await second.deleteNetwork(more.id)
      assert.equal(await value(), '0', 'as it was')
      await agent.createNetwork(net)
      await host(
        'ip link add vpn0 type veth peer name vpn1; ip addr add 10.99.0.1/24 dev vpn0; ip link set vpn0 up; ip link set vpn1 up',
      )
      await eventually('a way out that comes up later forwards too', async () =>
        (await host('cat /proc/sys/net/ipv4/conf/vpn0/forwarding')).stdout.startsWith('1'),
      )
      await host('ip link del vpn0')
      await host('echo 1 >/proc/sys/net/ipv4/ip_forward')
      await agent.deleteNetwork(net.id)
      assert.equal(await value(), '1', 'somebody forwards on all links since')
      await host('echo 0 >/proc/sys/net/ipv4/ip_forward')
      await agent.createNetwork(net)
      await host(`echo 0 >${uplink}`)
      await agent.deleteNetwork(net.id)
      assert.equal(await value(), '0', 'what somebody else set stays')
      const claims = await host('grep -rls uplink /run/noid/claims || true')
      for (const file of claims.stdout.split('\n').filter(Boolean))
        assert.doesNotMatch(readFileSync(file, 'utf8'), new RegExp(net.id), 'a claim of a network that is gone')
    })
  })
