// Shotcut's panel of the filter. Its analysis is a job of melt's: `filter.analyze()` starts it, and Shotcut brings `results` back.
import QtQuick 2.12
import QtQuick.Controls 2.12
import QtQuick.Layouts 1.12
import Shotcut.Controls 1.0 as Shotcut

Item {
    id: root

    readonly property var fills: ["fill", "none"]
    readonly property var cameras: ["pinhole", "wide", "ultra-wide", "tele", "fisheye", "ucm", "double-sphere"]
    readonly property var waits: ["pass", "wait"]
    property bool isAnalysing: false

    function say() {
        if (isAnalysing)
            state.text = "Analysing: see Jobs";
        else if (filter.get("results") !== "")
            state.text = "Analysed";
        else
            state.text = "Not analysed yet: the source passes through";
    }

    width: 350
    height: 300

    Component.onCompleted: {
        filter.set("analyze", 0);
        smoothness.value = filter.getDouble("smoothness");
        limit.value = filter.getDouble("frame_limit");
        fill.currentIndex = Math.max(0, fills.indexOf(filter.get("fill")));
        camera.currentIndex = Math.max(0, cameras.indexOf(filter.get("camera")));
        unanalysed.currentIndex = Math.max(0, waits.indexOf(filter.get("unanalysed")));
        say();
    }

    Connections {
        target: filter
        function onAnalyzeFinished() {
            root.isAnalysing = false;
            filter.set("reload", 1);
            root.say();
        }
    }

    GridLayout {
        anchors.fill: parent
        anchors.margins: 8
        columns: 2

        Shotcut.Button {
            text: "Analyse"
            onClicked: {
                // In the project's folder, where there is one; else only the engine keeps the track.
                filter.set("filename", application.getNextProjectFile("vs3r"));
                filter.getHash();
                root.isAnalysing = true;
                root.say();
                filter.analyze();
            }
        }

        Label {
            id: state
            Layout.fillWidth: true
            wrapMode: Text.Wrap
        }

        Label { text: "Smoothness" }

        Shotcut.SliderSpinner {
            id: smoothness
            minimumValue: 0
            maximumValue: 1
            decimals: 2
            stepSize: 0.01
            onValueChanged: filter.set("smoothness", value)
        }

        Label { text: "Strength of frame limit" }

        Shotcut.SliderSpinner {
            id: limit
            minimumValue: 0
            maximumValue: 1
            decimals: 2
            stepSize: 0.01
            onValueChanged: filter.set("frame_limit", value)
        }

        Label { text: "Fill" }

        Shotcut.ComboBox {
            id: fill
            Layout.fillWidth: true
            model: ["Neighbours, the rest painted in", "Neighbours only"]
            onActivated: filter.set("fill", root.fills[currentIndex])
        }

        Label { text: "Output camera" }

        Shotcut.ComboBox {
            id: camera
            Layout.fillWidth: true
            model: ["As filmed", "Wide", "Ultra wide", "Tele", "Fisheye", "Unified (ucm)", "Double sphere"]
            onActivated: filter.set("camera", root.cameras[currentIndex])
        }

        Label { text: "When not analysed" }

        Shotcut.ComboBox {
            id: unanalysed
            Layout.fillWidth: true
            model: ["Pass through", "Wait for the analysis"]
            onActivated: filter.set("unanalysed", root.waits[currentIndex])
        }

        Item { Layout.fillHeight: true }
    }
}
