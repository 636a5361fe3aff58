/**
 * Urgent bytes (MSG_OOB) of a real server: they are bytes of the stream, wherever a peek of the kernel's ends because of them. The engine
 * over real sockets of the loopback; the guest is played segment by segment.
 */
import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import { DataPlaneHost } from '../../src/dataplane/host.ts'
import { makeArena } from '../../src/dataplane/memory.ts'
import { Reactor } from '../../src/dataplane/reactor.ts'
import { ACK, FIN, RST, SYN } from '../../src/netstack/wire/tcp.ts'
import { close } from '../../src/sys/fd.ts'
import { Scratch } from '../../src/sys/libc.ts'
import {
  AF_INET,
  accept,
  bind,
  connect,
  getsockname,
  IPPROTO_TCP,
  listen,
  MSG_OOB,
  SOCK_STREAM,
  send,
  setOption,
  shutdown,
  socket,
  TCP_NODELAY,
} from '../../src/sys/socket.ts'
import { eventually } from '../eventually.ts'
import type { MemoryHost } from '../netstack/memory-host.ts'
import { TestNet, tcp } from '../netstack/net.ts'

const opened: number[] = []
after(() => {
  for (const fd of opened) close(fd)
})

function listening(): { fd: number; port: number } {
  const fd = socket(AF_INET, SOCK_STREAM)
  opened.push(fd)
  assert.equal(bind(fd, { family: 'inet', address: '127.0.0.1', port: 0 }), 0)
  assert.equal(listen(fd), 0)
  const at = getsockname(fd)
  assert.ok(typeof at === 'object' && at.family !== 'unix')
  return { fd, port: at.port }
}

const memory = new Scratch(4096)
function say(fd: number, text: string, flags = 0): void {
  memory.setText(0, text)
  assert.equal(send(fd, memory.address, text.length, flags), text.length)
}

/** A guest's connection over the engine: with a server, or with the client of a published port, whose socket is `far`. */
async function connection(peekOffset: readonly [boolean, boolean] | undefined, inbound: boolean) {
  const { fd, port } = listening()
  const reactor = new Reactor(1024)
  const host = new DataPlaneHost(reactor, makeArena(16), () => {}, peekOffset && { peekOffset })
  const deliver = () => {
    host.refreshClock()
    reactor.dispatch(reactor.wait(0))
  }
  const net = new TestNet({
    host: Object.assign(host, { deliver }) as unknown as MemoryHost,
    config: { allowHostPorts: [port] },
  })
  reactor.onSocket = (ref, events) => {
    while (net.network.ready(ref, events));
  }
  const vm = net.vm('a')
  const guest = { to: '', from: 5000, seq: 1001, next: 0, first: 0, text: '', ended: false, acks: true }
  const reply = (flags: number, seq: number) =>
    vm.send(tcp({ to: guest.to, from: guest.from, flags, seq, ack: guest.next }))
  const turn = () => {
    deliver()
    net.network.tick()
    net.network.flush()
    let news = false
    for (const { tcp: t } of vm.take()) {
      if (t === undefined) continue
      assert.equal(t.flags & RST, 0)
      if (t.seq !== guest.next) continue
      guest.text += Buffer.from(t.data).toString('latin1')
      guest.ended = (t.flags & FIN) !== 0
      guest.next = (t.seq + t.data.length + (guest.ended ? 1 : 0)) | 0
      news ||= t.data.length > 0 || guest.ended
    }
    if (news && guest.acks) reply(ACK, guest.seq)
  }
  const answered = async (flags: number): Promise<void> => {
    const r = await eventually('the handshake', () => {
      deliver()
      net.network.tick()
      return vm.take().find((r) => r.tcp !== undefined && (r.tcp.flags & (SYN | ACK)) === flags)
    })
    assert.ok(r?.ip && r.tcp)
    guest.to = `${r.ip.src}:${r.tcp.srcPort}`
    guest.next = (r.tcp.seq + 1) | 0
  }
  let far: number
  if (inbound) {
    const sock = host.adoptListener(fd)
    const at = { guestAddress: vm.ip, guestPort: guest.from, hostAddress: '127.0.0.1', hostPort: port }
    net.network.publish({ id: 'p', proto: 'tcp', sock, ...at })
    far = socket(AF_INET, SOCK_STREAM)
    assert.equal(connect(far, { family: 'inet', address: '127.0.0.1', port }), 0)
    await answered(SYN)
    reply(SYN | ACK, guest.seq - 1)
  } else {
    vm.send(tcp({ to: `192.168.100.254:${port}`, from: guest.from, seq: guest.seq - 1 }))
    await answered(SYN | ACK)
    reply(ACK, guest.seq)
    far = accept(fd) as number
  }
  assert.ok(far >= 0)
  opened.push(far)
  setOption(far, IPPROTO_TCP, TCP_NODELAY, 1)
  const got = (text: string) =>
    eventually(`the guest has ${text.length} bytes`, () => {
      turn()
      assert.equal(guest.text, text)
      return true
    })
  return { far, guest, got, reply, turn }
}

for (const [name, peekOffset] of [
  ['peek offset of the kernel', undefined],
  ['staged', [false, false]],
] as const)
  for (const inbound of [false, true])
    describe(`${name}, ${inbound ? 'a client of a published port' : 'a server'}`, () => {
      test('what lies behind an urgent byte does not wait for something new', async () => {
        const l = await connection(peekOffset, inbound)
        say(l.far, 'abc')
        say(l.far, 'U', MSG_OOB)
        say(l.far, 'defgh')
        await l.got('abcUdefgh')
      })

      test('acknowledged late: bytes keep their places', async () => {
        const l = await connection(peekOffset, inbound)
        l.guest.acks = false
        say(l.far, 'abc')
        await l.got('abc')
        say(l.far, 'U', MSG_OOB)
        if (peekOffset === undefined) await l.got('abcU')
        else l.turn()
        say(l.far, 'defgh')
        if (peekOffset === undefined) await l.got('abcUdefgh')
        else l.turn()
        l.guest.acks = true
        l.reply(ACK, l.guest.seq)
        say(l.far, 'ijk')
        await l.got('abcUdefghijk')
      })

      test('one urgent byte after another, the last with the end right behind it', async () => {
        const l = await connection(peekOffset, inbound)
        say(l.far, 'a')
        say(l.far, 'U', MSG_OOB)
        say(l.far, 'b')
        say(l.far, 'V', MSG_OOB)
        await l.got('aUbV')
        say(l.far, 'c')
        say(l.far, 'W', MSG_OOB)
        assert.equal(shutdown(l.far), 0)
        await l.got('aUbVcW')
        await eventually('the end', () => {
          l.turn()
          return l.guest.ended
        })
      })
    })
