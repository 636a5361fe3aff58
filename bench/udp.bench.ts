/** The UDP relay both ways, with the header push of the way back, and a new flow for a datagram. */
import { READABLE } from '../src/netstack/host.ts'
import { put16 } from '../src/netstack/wire/bytes.ts'
import { udp } from '../test/netstack/net.ts'
import { Rig } from './lib/rig.ts'
import { suite } from './lib/suite.ts'

const PER = 50
const SRC_PORT = 34
const rig = new Rig()
const len = rig.load(udp({ to: '8.8.8.8:9000', data: new Uint8Array(100) }))
rig.receive(len)
const [socket] = rig.host.open('udp')
if (socket === undefined) throw new Error('no flow')

const six = new Rig()
const len6 = six.load(udp({ to: '[2001:db8::8]:9000', data: new Uint8Array(100) }))
six.receive(len6)
const [socket6] = six.host.open('udp')
if (socket6 === undefined) throw new Error('no IPv6 flow')

/** The other rig's flows are given up and begun anew all the time. */
const fresh = new Rig()
const freshLen = fresh.load(udp({ to: '8.8.8.8:9000', data: new Uint8Array(100), checksum: 0 }))
let port = 0

await suite('udp', {
  'a datagram of 100 bytes out': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) rig.receive(len)
    },
  },
  'a datagram of 100 bytes in, headers pushed': {
    per: PER,
    run: () => {
      rig.host.waiting = PER
      rig.network.ready(socket.ref, READABLE)
    },
  },
  'a datagram of 100 bytes out, IPv6': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) six.receive(len6)
    },
  },
  'a datagram of 100 bytes in, headers pushed, IPv6': {
    per: PER,
    run: () => {
      six.host.waiting = PER
      six.network.ready(socket6.ref, READABLE)
    },
  },
  'a datagram that begins a flow': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) {
        put16(fresh.host.arena.bytes, fresh.slot + SRC_PORT, 1024 + (port++ % 60_000))
        fresh.receive(freshLen)
      }
    },
  },
})
