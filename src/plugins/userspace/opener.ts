/**
 * A stage that lives for a moment: opens a VM's device inside the VM's own user and network namespace, and sends the descriptor back.
 *
 * `nsenter --preserve-credentials -U -n ... node opener.ts <DeviceSpec as JSON>`, with a unix socket as descriptor 3. A daemon without
 * privileges cannot enter a user namespace itself: Node has several threads (setns(2): EINVAL). The answer is one line of JSON with the descriptor attached.
 */
import { CLONE_NEWNS, unshare } from '../../sys/netns.ts'
import { sendWithFds } from '../../sys/scm.ts'
import { type DeviceSpec, openDevice } from './device.ts'

export type OpenerAnswer =
  | { readonly kind: 'tap' | 'packet'; readonly vnetHdr: boolean; readonly existed: boolean }
  | { readonly error: string; readonly code: string }

const SOCKET = 3
// Who sees the namespace's sysfs (sys/netdev.ts setThreaded) must own the mounts around it. Without, there is one queue.
unshare(CLONE_NEWNS)
const tell = (a: OpenerAnswer, fds: readonly number[]) => sendWithFds(SOCKET, Buffer.from(JSON.stringify(a)), fds)

try {
  const { fds, ...rest } = openDevice(JSON.parse(process.argv[2] as string) as DeviceSpec)
  tell(rest, fds)
} catch (e) {
  tell({ error: (e as Error).message, code: (e as { code?: string }).code ?? '' }, [])
}
