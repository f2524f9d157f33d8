import QtQuick 2.0
import org.shotcut.qml 1.0

Metadata {
    type: Metadata.Filter
    name: "VS3R stabilize"
    keywords: "stabilize shake smooth steady camera vs3r"
    mlt_service: "vs3r"
    qml: "ui.qml"
    // It draws the file's own frames, so it belongs on the clip, once.
    isClipOnly: true
    allowMultiple: false
    isGpuCompatible: false
    keyframes { allowTrim: false }
}
