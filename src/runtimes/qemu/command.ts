/**
 * QEMU's command line for one VM: a pure function of what the VM is.
 *
 * Two machines are spoken: `microvm` (virtio-mmio; the small one) and `q35` (PCI; where microvm may hang, see machine.ts). The device list is
 * the same on both and in the same order, for a template's state fits only the very same list (template.ts).
 * Sockets and files of the VM's own directory are named relatively: QEMU is started inside it, so that no path grows too long for sun_path.
 * Never here: opening, spawning, deciding.
 */

/** What QEMU runs on; part of a template's key. */
export interface Machine {
  readonly accel: 'kvm' | 'tcg'
  readonly type: 'microvm' | 'q35'
  /** The host's TSC under `tcg`, in kHz: a guest that is told it need not find it out, which hangs microvm on a busy host. */
  readonly tscKhz?: number
}

/** Names inside the VM's run directory. */
export const QMP_SOCKET = 'qmp'
export const AGENT_SOCKET = 'agent'
export const CONSOLE_SOCKET = 'console'
/** The virtio-serial port that the guest's agent opens. */
export const AGENT_PORT = 'noid.agent.0'

export interface MemorySpec {
  readonly mib: number
  /** The file behind it; anonymous (a memfd when shared) without one. */
  readonly file?: string
  /** A vhost-user back-end maps it, or a template is being made. */
  readonly share: boolean
}

export interface CommandSpec {
  /** The whole of QEMU's `-name` argument's value: how the process is found again. */
  readonly mark: string
  readonly machine: Machine
  readonly cpus: number
  readonly memory: MemorySpec
  readonly kernel: string
  readonly initrd?: string
  /** What the image wants on the kernel's command line. */
  readonly append: string
  readonly hostname: string
  /** qcow2 overlay, already there. */
  readonly disk?: string
  /** Descriptors of the disk, for writing and for reading: QEMU as another user opens it again by them. */
  readonly diskFds?: readonly number[]
  /** Arguments that -netdev refers to, and further devices. */
  readonly before?: readonly string[]
  /** The value of -netdev without its id. */
  readonly netdev: string
  readonly mac: string
  readonly mtu: number
  readonly serialLog: string
  /** Do not boot: wait to be told where a state is. */
  readonly incoming?: boolean
  /** uid:gid that root's QEMU becomes once it has opened everything. */
  readonly runAs?: string
}

/** A comma in a value of QEMU's options is doubled. */
export const escaped = (text: string): string => text.replaceAll(',', ',,')

const VHOST_ON_PCI = ['virtio-net-pci', 'vhost-user-fs-pci']

/** The kernel's command line. */
export function kernelLine(s: Pick<CommandSpec, 'append' | 'hostname' | 'machine'>): string {
  const words = [s.append, `noid.hostname=${s.hostname}`, 'reboot=t']
  if (s.machine.accel === 'tcg') {
    if (s.machine.tscKhz !== undefined) words.push(`tsc_early_khz=${s.machine.tscKhz}`, 'tsc=reliable')
    // On q35 it finds the frequency out, and says so at this level (machine.ts).
    else words.push('loglevel=7')
  }
  return words.filter(Boolean).join(' ')
}

export function commandLine(s: CommandSpec): string[] {
  const { machine, memory } = s
  const microvm = machine.type === 'microvm'
  const on = (device: string): string => `${device}-${microvm ? 'device' : 'pci'}`
  const machineOptions = microvm ? 'microvm,pic=on,rtc=on,acpi=on' : 'q35,usb=off,vmport=off'
  const argv = [
    ...['-name', s.mark, '-nodefaults', '-no-user-config', '-display', 'none'],
    ...['-sandbox', sandbox(s.runAs !== undefined)],
    ...['-accel', machine.accel === 'kvm' ? 'kvm' : 'tcg,tb-size=64,thread=multi'],
    ...['-M', `${machineOptions},memory-backend=ram`, '-cpu', machine.accel === 'kvm' ? 'host' : 'max'],
    ...['-smp', String(s.cpus), '-m', String(memory.mib), '-object', memoryObject(memory)],
    ...['-kernel', s.kernel, ...(s.initrd === undefined ? [] : ['-initrd', s.initrd]), '-append', kernelLine(s)],
    ...['-chardev', `socket,id=qmp,path=${QMP_SOCKET},server=on,wait=off`, '-mon', 'chardev=qmp,mode=control'],
    ...[
      '-chardev',
      `socket,id=console,path=${CONSOLE_SOCKET},server=on,wait=off,logfile=${escaped(s.serialLog)},logappend=on`,
    ],
    ...['-serial', 'chardev:console'],
    // virtio 1 over mmio: without it no vhost-user.
    ...(microvm ? ['-global', 'virtio-mmio.force-legacy=false'] : []),
    // QEMU 7.2 dies of a vhost-user device on PCI with MSI-X where KVM is not: a null vector_irqfd in hw/virtio/virtio-pci.c.
    ...(!microvm && machine.accel === 'tcg' ? VHOST_ON_PCI.flatMap((d) => ['-global', `${d}.vectors=0`]) : []),
    ...[
      '-device',
      `${on('virtio-serial')},id=vs`,
      '-chardev',
      `socket,id=agent,path=${AGENT_SOCKET},server=on,wait=off`,
    ],
    ...['-device', `virtserialport,bus=vs.0,chardev=agent,name=${AGENT_PORT}`],
    ...['-object', 'rng-random,id=rng,filename=/dev/urandom', '-device', `${on('virtio-rng')},rng=rng`],
  ]
  if (s.disk !== undefined)
    argv.push(
      ...(s.diskFds ?? []).flatMap((fd) => ['-add-fd', `fd=${fd},set=1`]),
      ...[
        '-drive',
        `if=none,id=root,format=qcow2,file=${s.diskFds === undefined ? escaped(s.disk) : '/dev/fdset/1'},discard=unmap,detect-zeroes=unmap`,
      ],
      ...['-device', `${on('virtio-blk')},drive=root`],
    )
  argv.push(
    ...(s.before ?? []),
    '-netdev',
    `${s.netdev},id=net0`,
    '-device',
    `${on('virtio-net')},netdev=net0,mac=${s.mac},host_mtu=${s.mtu}`,
  )
  if (s.incoming === true) argv.push('-incoming', 'defer')
  if (s.runAs !== undefined) argv.push('-runas', s.runAs)
  return argv
}

/**
 * QEMU's own seccomp filter. It is on before -runas takes effect, whose setuid `elevateprivileges=deny` would forbid; afterwards there is
 * neither a privilege nor (spawn=deny) a program to gain one by.
 */
const sandbox = (becomesAnother: boolean): string =>
  `on,obsolete=deny,spawn=deny,resourcecontrol=deny${becomesAnother ? '' : ',elevateprivileges=deny'}`

function memoryObject(m: MemorySpec): string {
  const share = `share=${m.share ? 'on' : 'off'}`
  if (m.file !== undefined) return `memory-backend-file,id=ram,size=${m.mib}M,mem-path=${escaped(m.file)},${share}`
  return m.share ? `memory-backend-memfd,id=ram,size=${m.mib}M,${share}` : `memory-backend-ram,id=ram,size=${m.mib}M`
}
