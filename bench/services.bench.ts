/** The gateway's services through the whole engine: a renewed lease, names from the cache and from the zone. */
import { encode as encodeDns } from 'dns-packet'
import { encode as encodeDhcp } from '#dhcp-packet'
import { udp } from '../test/netstack/net.ts'
import { Rig, self } from './lib/rig.ts'
import { type Case, suite } from './lib/suite.ts'

const question = (name: string) => encodeDns({ type: 'query', id: 99, flags: 256, questions: [{ type: 'A', name }] })

/** Every frame has one answer. */
function answered(rig: Rig, len: number): Case {
  const before = rig.sent
  rig.receive(len)
  rig.deliver()
  if (rig.sent === before) throw new Error('no answer')
  return {
    run: () => {
      rig.receive(len)
      rig.network.flush()
    },
  }
}

function renewal(): Case {
  const rig = new Rig()
  const data = encodeDhcp({
    op: 'request',
    xid: 8,
    chaddr: self.mac,
    ciaddr: self.ip,
    options: { messageType: 'REQUEST' },
  })
  return answered(rig, rig.load(udp({ from: 68, to: '192.168.100.2:67', data })))
}

function cached(): Case {
  const rig = new Rig()
  rig.host.waiting = 0
  rig.network.setResolvers(['10.0.0.53'])
  let asked: Uint8Array | undefined
  const send = rig.host.udpSend.bind(rig.host)
  rig.host.udpSend = (sock, off, len) => {
    asked = rig.host.arena.bytes.slice(off, off + len)
    return send(sock, off, len)
  }
  const len = rig.load(udp({ to: '192.168.100.2:53', data: question('example.com') }))
  rig.receive(len)
  const [socket] = rig.host.open('udp')
  if (asked === undefined || socket === undefined) throw new Error('upstream was not asked')
  const answer = encodeDns({
    type: 'response',
    id: (asked[0]! << 8) | asked[1]!,
    flags: 384,
    questions: [{ type: 'A', name: 'example.com' }],
    answers: [{ type: 'A', name: 'example.com', ttl: 86_400, data: '192.0.2.1' }],
  })
  let given = false
  rig.host.udpRecv = (_sock, off) => {
    if (given) return -11
    given = true
    rig.host.arena.bytes.set(answer, off)
    return answer.length
  }
  rig.host.signal(socket.id, 1)
  rig.deliver()
  return answered(rig, len)
}

function zone(): Case {
  const rig = new Rig()
  return answered(rig, rig.load(udp({ to: '192.168.100.2:53', data: question('vm2.noid.internal') })))
}

await suite('services', {
  'DHCP: a lease renewed': renewal(),
  'DNS: an answer from the cache': cached(),
  'DNS: the name of a VM': zone(),
})
