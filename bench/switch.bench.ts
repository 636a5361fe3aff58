/** The switch: where a MAC is, and a frame from one guest to another. */
import { Fdb } from '../src/netstack/switch/fdb.ts'
import { tcp } from '../test/netstack/net.ts'
import { Rig } from './lib/rig.ts'
import { sink, suite } from './lib/suite.ts'

const MACS = 1000
const PER = 100
const fdb = new Fdb(4096, 256, 7)
for (let n = 0; n < MACS; n++) fdb.add(0x0200, n, n % 256, false, 0)
const rig = new Rig()
const len = rig.load(
  tcp({ to: '192.168.100.12:80', dstMac: '02:00:00:00:00:02', flags: 16, data: new Uint8Array(1460) }),
)
rig.receive(len)
if (rig.sent !== 1) throw new Error('the frame was not switched')
const six = new Rig()
const len6 = six.load(
  tcp({ to: '[fd00:6::12]:80', dstMac: '02:00:00:00:00:02', flags: 16, data: new Uint8Array(1440) }),
)
six.receive(len6)
if (six.sent !== 1) throw new Error('the IPv6 frame was not switched')
let next = 0

await suite('switch', {
  [`find one of ${MACS} MACs`]: {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) sink.value ^= fdb.lookup(0x0200, next++ % MACS)
    },
  },
  'switch a frame of 1514 bytes, guest to guest': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) rig.receive(len)
    },
  },
  'switch an IPv6 frame of 1514 bytes, guest to guest': {
    per: PER,
    run: () => {
      for (let i = 0; i < PER; i++) six.receive(len6)
    },
  },
})
